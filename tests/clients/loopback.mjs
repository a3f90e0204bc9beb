// Loaded before all else: this process reaches no other machine.
import { Socket } from "node:net";

const connect = Socket.prototype.connect;

Socket.prototype.connect = function (...given) {
    const [options] = Array.isArray(given[0]) ? given[0] : given;
    const host = typeof options === "object" ? (options.host ?? "localhost") : "localhost";
    if (!/^(localhost|127\..*|::1)$/.test(host)) {
        throw new Error(`tests reach no other machine, and this one tried ${host}`);
    }
    return connect.apply(this, given);
};
