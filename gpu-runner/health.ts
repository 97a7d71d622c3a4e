import { createServer, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { Registry } from "prom-client";

export interface Health {
  /** Why the runner can't take work now; empty where it can. */
  problems(): string[];
  /** Metrics in Prometheus' text format. */
  metrics(): Promise<string>;
}

export interface HealthServer {
  port: number;
  close(): Promise<void>;
}

/**
 * `/healthz` (the process answers), `/readyz` (connected, models loaded, not draining; 503 with the reasons otherwise) and `/metrics`
 * (Prometheus). Nothing here is secret, yet it is bound to this machine unless configured otherwise.
 * @throws Error with one sentence where the address can't be used.
 */
export async function serveHealth(host: string, port: number, health: Health): Promise<HealthServer> {
  const server = createServer((request, response) => {
    answer(request.method, request.url, health, response).catch(() => send(response, 500, "text/plain", "failed\n"));
  });
  await listen(server, host, port);
  return {
    port: (server.address() as AddressInfo).port,
    close: () =>
      new Promise(resolve => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

function listen(server: Server, host: string, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", (error: NodeJS.ErrnoException) => {
      const why = error.code === "EADDRINUSE" ? "the port is taken" : error.message;
      reject(
        new Error(`Health and metrics can't be served at ${host}:${port}: ${why}; set ATELIER_HTTP_PORT to another port, or to 0 for any.`),
      );
    });
    server.listen(port, host, resolve);
  });
}

async function answer(
  method: string | undefined,
  url: string | undefined,
  { problems, metrics }: Health,
  response: ServerResponse,
): Promise<void> {
  const path = url?.split("?")[0];
  if (method !== "GET" && method !== "HEAD") return send(response, 405, "text/plain", "GET only\n");
  if (path === "/healthz") return send(response, 200, "application/json", JSON.stringify({ status: "ok" }));
  if (path === "/readyz") {
    const reasons = problems();
    const body = { status: reasons.length === 0 ? "ready" : "not ready", problems: reasons };
    return send(response, reasons.length === 0 ? 200 : 503, "application/json", JSON.stringify(body));
  }
  if (path === "/metrics") return send(response, 200, Registry.PROMETHEUS_CONTENT_TYPE, await metrics());
  return send(response, 404, "text/plain", "there is /healthz, /readyz and /metrics\n");
}

function send(response: ServerResponse, status: number, type: string, body: string): void {
  response.writeHead(status, { "content-type": type, "cache-control": "no-store" }).end(body);
}
