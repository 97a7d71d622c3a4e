/** A model hub on this machine: one repository `some/model`, ranges, and connections that break. */
import { createHash } from "node:crypto";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { onTestFinished } from "vitest";

export const commit = "0123456789abcdef0123456789abcdef01234567";

/** A hub with one repository: the tree, ranges, and connections that break. */
export interface Hub {
  url: string;
  /** Range headers of the file requests, in order. */
  ranges: string[];
}

/** @param breakAfter bytes of a large file after which a connection is cut, one number a request; then they hold */
export async function startHub(files: Readonly<Record<string, Buffer>>, breakAfter: number[] = [], corrupt?: Buffer): Promise<Hub> {
  const ranges: string[] = [];
  const tree = Object.entries(files).map(([path, content]) => ({
    type: "file",
    path,
    size: content.length,
    oid: createHash("sha1").update(`blob ${content.length}\0`).update(content).digest("hex"),
    ...(path.endsWith(".safetensors") && {
      lfs: { oid: createHash("sha256").update(content).digest("hex"), size: content.length, pointerSize: 130 },
    }),
  }));
  const server = createServer((request, response) => {
    const { pathname } = new URL(request.url!, "http://hub");
    if (pathname.startsWith("/api/models/some/model/revision/"))
      return void response
        .setHeader("content-type", "application/json")
        .end(JSON.stringify({ _id: "1", id: "some/model", sha: commit, lastModified: "2026-01-01" }));
    if (pathname === `/api/models/some/model/tree/${commit}`)
      return void response.setHeader("content-type", "application/json").end(JSON.stringify(tree));
    const path = pathname.split(`/resolve/${commit}/`)[1];
    const content = path === undefined ? undefined : files[path];
    if (!content) return void response.writeHead(404, { "x-error-code": "RepoNotFound" }).end("{}");
    const sent = (path!.endsWith(".safetensors") && corrupt) || content;
    const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "");
    const [start, end] = range ? [Number(range[1]), Number(range[2]) + 1] : [0, content.length];
    const probe = end - start === 1;
    if (!probe) ranges.push(request.headers.range ?? "all");
    response.writeHead(range ? 206 : 200, {
      etag: '"x"',
      "content-length": end - start,
      ...(range && { "content-range": `bytes ${start}-${end - 1}/${content.length}` }),
    });
    const cut = probe || !path!.endsWith(".safetensors") ? undefined : breakAfter.shift();
    if (cut === undefined) return void response.end(sent.subarray(start, end));
    response.write(sent.subarray(start, start + cut), () => setTimeout(() => request.socket.destroy(), 20));
  });
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  await new Promise<void>(resolve => server.listen(0, "127.0.0.1", resolve));
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, ranges };
}
