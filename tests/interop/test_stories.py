"""How much is told here."""

from tests.interop.stories import all_stories


def test_most_of_many_stories_are_told_from_both_sides() -> None:
    stories = list(all_stories())

    assert len(stories) >= 40
    assert sum(story.is_told_from_both_sides for story in stories) > 0.8 * len(stories)
