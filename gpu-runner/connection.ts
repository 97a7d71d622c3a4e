import WebSocket from "ws";
import { PROTOCOL_VERSION } from "../shared/engine.ts";
import { type DispatcherMessage, dispatcherMessageSchema, type RunnerMessage, runnerPaths } from "../shared/protocol.ts";
import { type Backoff, backoffMs } from "./backoff.ts";
import type { Logger } from "./log.ts";
import type { Metrics } from "./metrics.ts";

type Unversioned<M> = M extends unknown ? Omit<M, "v"> : never;
/** A message without its version, which the connection adds. */
export type Outgoing = Unversioned<RunnerMessage>;
export type Welcome = Extract<DispatcherMessage, { type: "welcome" }>;
export type Incoming = Exclude<DispatcherMessage, { type: "welcome" | "error" }>;

export interface ConnectionHandlers {
  /** The first message of every socket. */
  hello(): Extract<Outgoing, { type: "hello" }>;
  /** The dispatcher answered hello: the socket is in use from here on. */
  welcome(message: Welcome): void;
  message(message: Incoming): void;
  /** Called at every heartbeat interval of an open socket. */
  heartbeat(): void;
}

export interface ConnectionOptions {
  edgeUrl: URL;
  token: string;
  log: Logger;
  metrics: Metrics;
  handlers: ConnectionHandlers;
  timings?: Partial<ConnectionTimings>;
}

interface ConnectionTimings {
  reconnect: Backoff;
  /** After the edge refused the token: it won't change its mind soon. */
  refused: Backoff;
  /** Most time for the upgrade, and again from there to the dispatcher's welcome, in milliseconds. */
  handshakeMs: number;
}

const defaultTimings: ConnectionTimings = {
  reconnect: { baseMs: 250, capMs: 10_000 },
  refused: { baseMs: 15_000, capMs: 300_000 },
  handshakeMs: 10_000,
};

/** Heartbeat intervals without any sign of the other side after which a socket counts as dead. */
const MISSED_LIMIT = 3;
const MAX_MESSAGE_BYTES = 16 * 2 ** 20;

/**
 * The runner's one outbound WebSocket. It comes back by itself after every loss; what the loss means for leases is not decided here.
 */
export class Connection {
  readonly #options: ConnectionOptions;
  readonly #timings: ConnectionTimings;
  #socket: WebSocket | undefined;
  #welcomed = false;
  #failures = 0;
  #tokenRefused = false;
  #missed = 0;
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(options: ConnectionOptions) {
    this.#options = options;
    this.#timings = { ...defaultTimings, ...options.timings };
  }

  /** True from welcome until the socket is lost. */
  get connected(): boolean {
    return this.#welcomed;
  }

  /** Why there is no connection, in words for an operator. */
  get problem(): string | undefined {
    if (this.#welcomed) return undefined;
    return this.#tokenRefused ? "the edge refuses the runner token" : "not connected to the edge";
  }

  start(): void {
    if (!this.#closed && !this.#socket) this.#open();
  }

  /** Sends on a socket that is in use. False where there is none: the caller says it again after the next welcome, or not at all. */
  send(message: Outgoing): boolean {
    if (!this.#welcomed || this.#socket?.readyState !== WebSocket.OPEN) return false;
    this.#write(this.#socket, message);
    return true;
  }

  /** Says hello anew on another socket, as when the models have changed. */
  renew(): void {
    this.#socket?.close(1000, "renew");
  }

  /** Closes for good; resolves when the closing handshake is done, or after a second. */
  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#timer);
    const socket = this.#socket;
    if (!socket || socket.readyState === WebSocket.CLOSED) return;
    await new Promise<void>(resolve => {
      const forced = setTimeout(() => socket.terminate(), 1000);
      socket.once("close", () => {
        clearTimeout(forced);
        resolve();
      });
      socket.close(1000, "runner stops");
    });
  }

  #open(): void {
    const { edgeUrl, token, log } = this.#options;
    const url = new URL(runnerPaths.socket, edgeUrl);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(url, {
      headers: { authorization: `Bearer ${token}` },
      handshakeTimeout: this.#timings.handshakeMs,
      maxPayload: MAX_MESSAGE_BYTES,
      perMessageDeflate: false,
      followRedirects: false,
    });
    this.#socket = socket;
    socket.on("open", () => this.#greet(socket));
    socket.on("message", (data, isBinary) => this.#receive(socket, isBinary ? undefined : String(data)));
    socket.on("pong", () => {
      this.#missed = 0;
    });
    socket.on("unexpected-response", (request, response) => {
      this.#refusedUpgrade(response.statusCode ?? 0);
      request.destroy();
      socket.terminate();
    });
    socket.on("error", error => log.warn({ error: error.message }, "socket error"));
    socket.on("close", code => this.#lost(socket, code));
  }

  #greet(socket: WebSocket): void {
    this.#missed = 0;
    this.#write(socket, this.#options.handlers.hello());
    this.#timer = setTimeout(() => {
      this.#options.log.warn("the dispatcher did not answer hello");
      socket.terminate();
    }, this.#timings.handshakeMs);
  }

  #refusedUpgrade(status: number): void {
    this.#tokenRefused = status === 401 || status === 403;
    if (this.#tokenRefused) this.#options.log.error({ status }, "the edge refuses the runner token: it is unknown or revoked");
    else this.#options.log.warn({ status }, "the edge did not open a socket");
  }

  #receive(socket: WebSocket, text: string | undefined): void {
    if (socket !== this.#socket) return;
    this.#missed = 0;
    const message = readMessage(text);
    const { handlers, log, metrics } = this.#options;
    if (!message) {
      metrics.badMessages.inc();
      log.warn("a message of the dispatcher could not be read and was dropped");
    } else if (message.type === "error") {
      this.#tokenRefused = message.code === "unauthorized" || message.code === "forbidden";
      log.error({ code: message.code, reason: message.message }, "the dispatcher reports an error");
    } else if (message.type === "welcome") {
      this.#enterUse(socket, message);
    } else if (this.#welcomed) {
      handlers.message(message);
    }
  }

  #enterUse(socket: WebSocket, message: Welcome): void {
    const { handlers, log, metrics } = this.#options;
    this.#welcomed = true;
    this.#failures = 0;
    this.#tokenRefused = false;
    metrics.connections.inc();
    log.info({ heartbeat_ms: message.heartbeat_ms, leases: message.leases.length }, "connected");
    clearTimeout(this.#timer);
    this.#timer = setInterval(() => this.#beat(socket), message.heartbeat_ms);
    handlers.welcome(message);
  }

  /** A half-open socket takes what is written and never answers: only missing pongs show it. */
  #beat(socket: WebSocket): void {
    if (this.#missed++ >= MISSED_LIMIT) {
      this.#options.log.warn("no sign of the edge: the socket is given up");
      socket.terminate();
      return;
    }
    socket.ping();
    this.#options.handlers.heartbeat();
  }

  #lost(socket: WebSocket, code: number): void {
    if (socket !== this.#socket) return;
    clearTimeout(this.#timer);
    this.#socket = undefined;
    this.#welcomed = false;
    if (this.#closed) return;
    this.#options.log.warn({ code }, "the socket is lost");
    const wait = backoffMs(this.#failures++, this.#tokenRefused ? this.#timings.refused : this.#timings.reconnect);
    this.#options.log.info({ wait_ms: Math.round(wait) }, "connecting again");
    this.#timer = setTimeout(() => this.#open(), wait);
  }

  #write(socket: WebSocket, message: Outgoing): void {
    socket.send(JSON.stringify({ v: PROTOCOL_VERSION, ...message }));
  }
}

function readMessage(text: string | undefined): DispatcherMessage | undefined {
  if (text === undefined) return undefined;
  try {
    return dispatcherMessageSchema.safeParse(JSON.parse(text)).data;
  } catch {
    return undefined;
  }
}
