/** The other side of a runner's sockets, for tests: speaks the protocol over real HTTP and WebSockets, and decides as the test says. */
import { createHash, generateKeyPairSync, randomBytes } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { ulid } from "ulid";
import { type WebSocket, WebSocketServer } from "ws";
import { canonicalize, sha256Hex } from "../../../shared/canonical.ts";
import { ENGINE_VERSION, PROTOCOL_VERSION } from "../../../shared/engine.ts";
import { type PictureRequest, plainPicture } from "../../../shared/picture.ts";
import {
  checkpointKey,
  type DispatcherMessage,
  type Lease,
  type RunnerMessage,
  runnerMessageSchema,
  runnerPaths,
} from "../../../shared/protocol.ts";
import { type GrantClaims, type PrivateJwk, privateJwkSchema, publicJwk, sign } from "../../../shared/signing.ts";
import type { TrainingRequest } from "../../../shared/training.ts";

export const TOKEN = `rnr_${ulid()}.${randomBytes(24).toString("base64url")}`;

export function newKey(kid: string): PrivateJwk {
  return privateJwkSchema.parse({ ...generateKeyPairSync("ed25519").privateKey.export({ format: "jwk" }), kid });
}

export function newExecution(): string {
  return `exe_${ulid()}`;
}

/** A valid picture request of a model that no runner holds, unless `changes` names one. */
export function pictureRequest(changes: Partial<PictureRequest> = {}): PictureRequest {
  return {
    ...plainPicture,
    engine_version: ENGINE_VERSION,
    model: `sha256:${"0".repeat(64)}`,
    prompt: "a red circle",
    width: 128,
    height: 128,
    steps: 4,
    guidance_scale: 5,
    seed: 7,
    sampler: "ddim",
    ...changes,
  };
}

/** An input file as a grant names it. */
export function inputOf(content: string, key = `inputs/ten/${sha256(content)}`): GrantedInput {
  return { sha256: sha256(content), bytes: Buffer.byteLength(content), key, capability: `read.${key}` };
}
export type GrantedInput = GrantClaims["executions"][number]["inputs"][number];

export function sha256(content: string): string {
  return createHash("sha256").update(content).digest("hex");
}

export interface Granted extends Lease {
  request: PictureRequest | TrainingRequest;
  inputs?: GrantClaims["executions"][number]["inputs"];
  adapters?: GrantClaims["executions"][number]["adapters"];
}

function capabilities(execution: string, epoch: number, isTraining: boolean): GrantClaims["executions"][number]["capabilities"] {
  const checkpoint = { put: `checkpoint.${execution}.${epoch}`, get: `read.${checkpointKey(execution)}` };
  return { result: `result.${execution}.${epoch}`, progress: `progress.${execution}.${epoch}`, checkpoint: isTraining ? checkpoint : null };
}

/** Everything of a grant that a test may want to be wrong. */
export interface GrantChanges {
  instance?: string;
  key?: PrivateJwk;
  exp?: number;
  attemptDeadline?: number;
  claimedEpoch?: number;
  claimedParams?: string;
  sentParams?: string;
}

export interface Upload {
  path: string;
  token: string;
  sha256: string;
  contentLength: number;
  body: Buffer;
}

type Message<T extends RunnerMessage["type"]> = Extract<RunnerMessage, { type: T }>;

export class EdgePeer {
  readonly key = newKey("grant-test");
  readonly messages: RunnerMessage[] = [];
  readonly uploads: Upload[] = [];
  /** What a runner may read, by object key, and how often each was asked for. */
  readonly objects = new Map<string, string | Buffer>();
  readonly reads: { path: string; token: string; range: string | undefined }[] = [];
  /** Answers a read in another way. True where it has. */
  onRead: (response: ServerResponse, content: string | Buffer, read: number) => boolean = () => false;
  readonly progress: { path: string; token: string; body: unknown }[] = [];
  /** Status of the upgrade: 101 opens a socket. */
  upgradeStatus = 101;
  autoPong = true;
  welcomes = true;
  heartbeatMs = 100;
  uploadStatus: (path: string) => number = () => 200;
  verdict: (lease: Lease) => "keep" | "abandon" = () => "keep";
  commits = true;
  connections = 0;
  upgrades = 0;
  readonly #server: Server;
  readonly #sockets = new Set<WebSocket>();
  #changed: (() => void)[] = [];

  private constructor(server: Server) {
    this.#server = server;
  }

  static async start(): Promise<EdgePeer> {
    const server = createServer();
    const peer = new EdgePeer(server);
    server.on("request", (request, response) => {
      // A runner whose lease is over cuts its uploads off.
      void peer.#http(request, response).catch(error => {
        if (!request.errored) throw error;
      });
    });
    server.on("upgrade", (request, socket, head) => {
      peer.upgrades++;
      peer.#wake();
      const status = request.headers.authorization === `Bearer ${TOKEN}` && request.url === runnerPaths.socket ? peer.upgradeStatus : 401;
      if (status !== 101) {
        socket.end(`HTTP/1.1 ${status} No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n`);
        return;
      }
      const sockets = new WebSocketServer({ noServer: true, autoPong: peer.autoPong });
      sockets.handleUpgrade(request, socket, head, opened => peer.#attend(opened));
    });
    await new Promise<void>(resolve => server.listen(0, "127.0.0.1", resolve));
    return peer;
  }

  get url(): URL {
    return new URL(`http://127.0.0.1:${(this.#server.address() as AddressInfo).port}/`);
  }
  get jwks(): string {
    return JSON.stringify({ keys: [publicJwk(this.key)] });
  }

  of<T extends RunnerMessage["type"]>(type: T): Message<T>[] {
    return this.messages.filter((message): message is Message<T> => message.type === type);
  }

  /** Waits until `read` gives something, looking again whenever anything arrives. */
  async until<T>(read: () => T | undefined | false, what: string, timeoutMs = 15_000): Promise<T> {
    const end = Date.now() + timeoutMs;
    for (;;) {
      const value = read();
      if (value !== undefined && value !== false) return value;
      if (Date.now() > end) {
        throw new Error(
          `waited ${timeoutMs} ms for ${what}; messages: ${JSON.stringify(this.messages.filter(({ type }) => type !== "heartbeat"))}`,
        );
      }
      await new Promise<void>(resolve => {
        const timer = setTimeout(resolve, 100);
        this.#changed.push(() => {
          clearTimeout(timer);
          resolve();
        });
      });
    }
  }

  async connected(): Promise<Message<"hello">> {
    await this.until(() => this.of("ready").at(-1), "a ready message");
    return this.of("hello").at(-1) as Message<"hello">;
  }

  /** Grants executions to the instance that said hello last. */
  async grant(executions: Granted[], changes: GrantChanges = {}): Promise<void> {
    const instance = changes.instance ?? this.of("hello").at(-1)?.instance ?? "";
    const attemptDeadline = changes.attemptDeadline ?? Date.now() + 60_000;
    const claims: Omit<GrantClaims, "aud" | "iat" | "jti"> = {
      instance,
      exp: changes.exp ?? Math.floor(Date.now() / 1000) + 60,
      executions: await Promise.all(
        executions.map(async ({ execution, epoch, request, inputs = [], adapters = [] }) => ({
          execution,
          epoch: changes.claimedEpoch ?? epoch,
          params_sha256: await sha256Hex(changes.claimedParams ?? canonicalize(request)),
          attempt_deadline: attemptDeadline,
          request_id: `req_${ulid()}`,
          ...("settings" in request
            ? { kind: "training" as const, capabilities: capabilities(execution, epoch, true) }
            : { kind: "picture" as const, capabilities: capabilities(execution, epoch, false) }),
          inputs,
          adapters,
        })),
      ),
    };
    this.send({
      v: PROTOCOL_VERSION,
      type: "lease",
      grant: await sign("grant", claims, changes.key ?? this.key),
      executions: executions.map(({ execution, epoch, request }) => ({
        execution,
        epoch,
        params: changes.sentParams ?? canonicalize(request),
      })),
    });
  }

  send(message: DispatcherMessage): void {
    this.sendText(JSON.stringify(message));
  }
  sendText(text: string): void {
    for (const socket of this.#sockets) socket.send(text);
  }

  /** Cuts every socket without a closing handshake. */
  cut(): void {
    for (const socket of this.#sockets) socket.terminate();
  }

  async close(): Promise<void> {
    this.cut();
    await new Promise<void>(resolve => {
      this.#server.close(() => resolve());
      this.#server.closeAllConnections();
    });
  }

  #attend(socket: WebSocket): void {
    this.connections++;
    this.#sockets.add(socket);
    socket.on("close", () => this.#sockets.delete(socket));
    socket.on("message", data => {
      const message = runnerMessageSchema.parse(JSON.parse(String(data)));
      this.messages.push(message);
      this.#answer(message);
      this.#wake();
    });
  }

  #answer(message: RunnerMessage): void {
    if (message.type === "hello" && this.welcomes) {
      const leases = message.leases.map(lease => ({ ...lease, verdict: this.verdict(lease) }));
      this.send({ v: PROTOCOL_VERSION, type: "welcome", heartbeat_ms: this.heartbeatMs, leases });
    }
    if (message.type === "complete" && this.commits) {
      this.send({ v: PROTOCOL_VERSION, type: "committed", execution: message.execution, epoch: message.epoch });
    }
  }

  async #http(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const body = Buffer.concat(await Array.fromAsync(request as AsyncIterable<Buffer>));
    const token = request.headers.authorization?.replace("Bearer ", "") ?? "";
    const path = request.url ?? "";
    if (request.method === "GET") {
      this.#read(path, token, request.headers.range, response);
    } else if (request.method === "POST") {
      this.progress.push({ path, token, body: JSON.parse(String(body)) });
      response.writeHead(204).end();
    } else {
      const contentLength = Number(request.headers["content-length"]);
      this.uploads.push({ path, token, sha256: String(request.headers["x-atelier-sha256"]), contentLength, body });
      response.writeHead(this.uploadStatus(path)).end();
    }
    this.#wake();
  }

  #read(path: string, token: string, range: string | undefined, response: ServerResponse): void {
    const key = path.replace("/runner/v1/objects/", "");
    const content = this.objects.get(key);
    this.reads.push({ path, token, range });
    const from = Number(/^bytes=(\d+)-$/.exec(range ?? "")?.[1] ?? 0);
    if (content === undefined || token !== `read.${key}`) response.writeHead(404).end();
    else if (!this.onRead(response, content, this.reads.length)) response.writeHead(from > 0 ? 206 : 200).end(content.slice(from));
  }

  #wake(): void {
    const waiting = this.#changed;
    this.#changed = [];
    for (const wake of waiting) wake();
  }
}
