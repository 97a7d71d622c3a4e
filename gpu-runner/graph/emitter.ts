/** How graphs become ONNX: one emitter per execution provider, each a table with a rule for every op. */
import type { Support } from "../../shared/support.ts";
import { cpuEmitter } from "./emitters/cpu.ts";
import type { Graph, NodeOf } from "./ir.ts";
import { OnnxBuilder, type OnnxModel } from "./onnx.ts";
import type { OpName } from "./ops.ts";

/** Execution providers by their name in configuration and in ONNX Runtime. */
export const executionProviderNames = ["cpu", "webgpu", "cuda"] as const;
export type ExecutionProviderName = (typeof executionProviderNames)[number];

/** Emits the ONNX nodes of one op. */
export type EmitRules = { readonly [K in OpName]: (node: NodeOf<K>, onnx: OnnxBuilder) => void };

export interface Emitter {
  readonly rules: EmitRules;
  /** ONNX ops that the rules may emit, "domain:op" outside ai.onnx; all of them have kernels on this provider. */
  readonly ops: ReadonlySet<string>;
}

const emitters = { cpu: cpuEmitter, webgpu: null, cuda: null } satisfies Record<ExecutionProviderName, Emitter | null>;

/** Rows of docs/support.md. */
export const providerSupport = {
  cpu: { title: "fp32, on every machine that ONNX Runtime runs on", proof: "reference" },
} as const satisfies Partial<Record<ExecutionProviderName, Support>>;

/** Asking for a provider that has no emitter yet. */
export class ProviderError extends Error {
  constructor(provider: string) {
    const built = executionProviderNames.filter(name => emitters[name] !== null);
    super(`execution provider: expected ${built.join(" or ")}, got ${provider}, which is not built yet`);
    this.name = "ProviderError";
  }
}

/** The emitter of a provider. Throws ProviderError where none is built. */
export function emitterFor(provider: ExecutionProviderName): Emitter {
  const emitter = emitters[provider];
  if (!emitter) throw new ProviderError(provider);
  return emitter;
}

/** The ONNX form of a graph for one provider. `channelBlock` is explained at OnnxBuilder. */
export function emit(graph: Graph, emitter: Emitter, { channelBlock }: { channelBlock: number } = { channelBlock: 1 }): OnnxModel {
  const onnx = new OnnxBuilder(graph, channelBlock);
  for (const node of graph.nodes) {
    // The union of nodes and the table's mapped type correspond by `op`, which the compiler cannot follow through an index.
    const rule = emitter.rules[node.op] as (node: NodeOf<OpName>, onnx: OnnxBuilder) => void;
    rule(node, onnx);
  }
  return onnx.finish(emitter.ops);
}
