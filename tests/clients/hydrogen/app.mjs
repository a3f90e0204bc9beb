// The whole of Hydrogen as a page, as its makers' own build has it; its assets lie beside it.
import { createNavigation, createRouter, FeatureSet, Platform, RootViewModel } from "hydrogen-view-sdk";

const platform = new Platform({
    container: document.body,
    assetPaths: {
        downloadSandbox: "download-sandbox.html",
        worker: "main.js",
        olm: { wasm: "olm.wasm", legacyBundle: "olm_legacy.js", wasmBundle: "olm.js" },
        serviceWorker: "sw.js",
    },
    config: { defaultHomeServer: new URL(location.href).searchParams.get("homeserver") },
    options: { development: false },
});
const navigation = createNavigation();
platform.setNavigation(navigation);
await platform.init();
const urlRouter = createRouter({ navigation, history: platform.history });
urlRouter.attach();
const features = await FeatureSet.load(platform.settingsStorage);
const viewModel = new RootViewModel({ platform, urlRouter, navigation, features });
await viewModel.load();
platform.createAndMountRootView(viewModel);
