import { z } from "zod";
import { PROTOCOL_VERSION } from "../../shared/engine.ts";
import type { ErrorCode } from "../../shared/errors.ts";
import { idSchema } from "../../shared/names.ts";
import type { DispatcherMessage } from "../../shared/protocol.ts";

/** Header in which the Worker tells the dispatcher the id of the verified runner token; the Worker strips it from what comes in. */
export const RUNNER_TOKEN_HEADER = "x-atelier-runner-token";

/** What a hibernating socket remembers. `over`: nothing that it says counts any more. */
const attachmentSchema = z.strictObject({
  token: idSchema("runnerToken"),
  instance: idSchema("instance").nullable(),
  over: z.boolean(),
});
export type Attachment = z.infer<typeof attachmentSchema>;

/** Why we close: application codes of RFC 6455, 4000 + the HTTP status that comes closest. */
export const closeCodes = { closed: 1000, malformed: 4400, revoked: 4401, silent: 4408, replaced: 4409, internal: 4500 } as const;
export type CloseReason = keyof typeof closeCodes;

/** The runners' sockets, which survive the object's hibernation. At most one that counts per instance. */
export class Sockets {
  readonly #ctx: DurableObjectState;

  constructor(ctx: DurableObjectState) {
    this.#ctx = ctx;
  }

  /** Answers an upgrade request. Tagged with the token, so that a revocation finds the sockets. */
  accept(token: string): Response {
    const { 0: client, 1: server } = new WebSocketPair();
    this.#ctx.acceptWebSocket(server, [token]);
    server.serializeAttachment({ token, instance: null, over: false } satisfies Attachment);
    return new Response(null, { status: 101, webSocket: client });
  }

  /** Undefined for a socket whose attachment we don't understand: it is as good as over. */
  attachment(socket: WebSocket): Attachment | undefined {
    return attachmentSchema.safeParse(socket.deserializeAttachment()).data;
  }

  /** Makes this socket the one of the instance; an older one is closed. */
  bind(socket: WebSocket, attachment: Attachment, instance: string): void {
    for (const other of this.#ofInstance(instance)) {
      if (other !== socket) this.end(other, "replaced", "a newer socket of this instance took over");
    }
    socket.serializeAttachment({ ...attachment, instance } satisfies Attachment);
  }

  /** Sends to the instance, where it is connected; what is lost with a socket is asked for again after the next hello. */
  send(instance: string, message: DispatcherMessage): void {
    for (const socket of this.#ofInstance(instance)) trySend(socket, message);
  }

  /** Says what is wrong and closes. */
  refuse(socket: WebSocket, reason: CloseReason, code: ErrorCode, message: string): void {
    trySend(socket, { v: PROTOCOL_VERSION, type: "error", code, message });
    this.end(socket, reason, message);
  }

  end(socket: WebSocket, reason: CloseReason, message: string): void {
    const attachment = this.attachment(socket);
    if (attachment) socket.serializeAttachment({ ...attachment, over: true } satisfies Attachment);
    try {
      socket.close(closeCodes[reason], message.slice(0, 100));
    } catch {
      // It was closed already.
    }
  }

  endInstance(instance: string, reason: CloseReason, message: string): void {
    for (const socket of this.#ofInstance(instance)) this.end(socket, reason, message);
  }

  endToken(token: string): void {
    for (const socket of this.#ctx.getWebSockets(token)) this.refuse(socket, "revoked", "unauthorized", "the runner token was revoked");
  }

  /** Instances that have a socket. */
  instances(): string[] {
    return this.#live().flatMap(({ attachment }) => attachment.instance ?? []);
  }

  #ofInstance(instance: string): WebSocket[] {
    return this.#live()
      .filter(({ attachment }) => attachment.instance === instance)
      .map(({ socket }) => socket);
  }

  #live(): { socket: WebSocket; attachment: Attachment }[] {
    return this.#ctx.getWebSockets().flatMap(socket => {
      const attachment = this.attachment(socket);
      return attachment && !attachment.over && socket.readyState === WebSocket.OPEN ? [{ socket, attachment }] : [];
    });
  }
}

function trySend(socket: WebSocket, message: DispatcherMessage): void {
  try {
    socket.send(JSON.stringify(message));
  } catch {
    // It is closing: the runner comes back with a hello, and everything that matters is said again then.
  }
}
