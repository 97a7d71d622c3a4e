/** A component's graph with its gradients: one session for each size that batches have, the last few of them kept. */
import { bindSizes, differentiate, gradientName } from "../autodiff/differentiate.ts";
import { packOutputs } from "../autodiff/packs.ts";
import type { TensorF32 } from "../components.ts";
import type { Graph } from "../graph/ir.ts";
import { createSession, type Feeds, type GraphSession, type SessionOptions } from "../session.ts";
import { requireMemory } from "./room.ts";

export interface TrainingOptions extends Omit<SessionOptions, "training" | "progressiveFrom" | "onPlanned"> {
  /** Whether activations are computed again for the gradients instead of being kept; absent: kept. */
  recompute?: boolean;
  /** Told by how many bytes the memory grows or shrinks that open sessions hold for their values. */
  onHeld?: (bytes: number) => void;
}

export interface TrainedComponent {
  /** With symbols for sizes, which feeds tell. */
  graph: Graph;
  /** Outputs that are wanted. */
  outputs: readonly string[];
  /** Outputs whose cotangents are fed, of these. */
  of: readonly string[];
  /** Inputs whose gradients are wanted. */
  wrt: readonly string[];
  /** Adds to the graph once its sizes are numbers, such as a loss. */
  extend?: (bound: Graph) => void;
}

interface OpenSession {
  session: GraphSession;
  /** For values, by the plan: a session keeps what it once took. */
  bytes: number;
  unpack(results: Readonly<Record<string, TensorF32>>): Record<string, TensorF32>;
}

const keptSessions = 6;

export class TrainingSession {
  readonly #component: TrainedComponent;
  readonly #options: TrainingOptions;
  /** By sizes, the last used at the end. */
  readonly #open = new Map<string, Promise<OpenSession>>();

  constructor(component: TrainedComponent, options: TrainingOptions) {
    this.#component = component;
    this.#options = options;
  }

  /** The outputs alone. Throws GraphError for a feed that is missing or misshapen. */
  async forward(feeds: Feeds): Promise<Record<string, TensorF32>> {
    return this.#run(feeds, false);
  }

  /** The outputs, and `gradient.<input>` of each wanted input; `feeds` has the cotangents too. */
  async gradients(feeds: Feeds): Promise<Record<string, TensorF32>> {
    return this.#run(feeds, true);
  }

  async release(): Promise<void> {
    const all = [...this.#open.values()];
    this.#open.clear();
    for (const opened of await Promise.allSettled(all)) if (opened.status === "fulfilled") await this.#close(opened.value);
  }

  async #run(feeds: Feeds, withGradients: boolean): Promise<Record<string, TensorF32>> {
    const sizes = new Map(
      [...this.#component.graph.symbols()].map(([name, { input, axis }]) => [name, feeds[input.name]?.shape[axis] ?? 0]),
    );
    const key = JSON.stringify([withGradients, [...sizes]]);
    const opened = this.#open.get(key) ?? this.#make(sizes, withGradients);
    this.#open.delete(key);
    this.#open.set(key, opened);
    opened.catch(() => this.#open.delete(key));
    await this.#drop();
    const { session, unpack } = await opened;
    return unpack(await session.run(feeds));
  }

  async #make(sizes: ReadonlyMap<string, number>, withGradients: boolean): Promise<OpenSession> {
    const { graph, outputs, of, wrt, extend } = this.#component;
    const bound = bindSizes(graph, sizes);
    extend?.(bound);
    const wanted = bound.outputs.filter(({ name }) => outputs.includes(name));
    bound.outputs.splice(0, bound.outputs.length, ...wanted);
    if (!withGradients) return this.#opened(bound, results => ({ ...results }));
    const recompute = this.#options.recompute ?? false;
    const packed = packOutputs(differentiate(bound, { of, wrt, recompute }), gradientName(""));
    return this.#opened(packed.graph, packed.unpack);
  }

  async #opened(graph: Graph, unpack: OpenSession["unpack"]): Promise<OpenSession> {
    let bytes = 0;
    const onPlanned = (planned: number): void => {
      requireMemory(planned);
      bytes = planned;
    };
    const session = await createSession(graph, { ...this.#options, training: true, onPlanned });
    this.#options.onHeld?.(bytes);
    return { session, bytes, unpack };
  }

  async #drop(): Promise<void> {
    for (const [key, opened] of this.#open) {
      if (this.#open.size <= keptSessions) return;
      this.#open.delete(key);
      await this.#close(await opened);
    }
  }

  async #close({ session, bytes }: OpenSession): Promise<void> {
    await session.release();
    this.#options.onHeld?.(-bytes);
  }
}
