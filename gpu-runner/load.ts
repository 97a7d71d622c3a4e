/** Makes a `DiffusionModel` from a diffusers folder. */
import type { WeightShapes } from "./adapters/adapter.ts";
import type { DiffusionModel, EncodeTextArgs, LoadOptions, PredictArgs, TensorF32, TextEncoding } from "./components.ts";
import { emitterFor } from "./graph/emitter.ts";
import { type Graph, GraphError } from "./graph/ir.ts";
import { buildVaeDecoder, buildVaeEncoder } from "./models/autoencoder-kl.ts";
import { buildTextEncoder, poolingPosition } from "./models/clip-text.ts";
import { TextEmbeddings } from "./models/text-embeddings.ts";
import { addedConditions, buildUnet, guidanceFeatures, timestepFeatures } from "./models/unet.ts";
import { createSession, type Feeds, SessionCache, type SessionLease } from "./session.ts";
import { describeFolder, type ModelDescription } from "./weights/describe.ts";
import { keyLayouts } from "./weights/key-layouts.ts";
import { type ComponentName, hashModel, type ModelFolder, openModelFolder } from "./weights/model-folder.ts";
import { placeFloat32 } from "./weights/placement.ts";
import { withSafetensors } from "./weights/safetensors.ts";
import { type KeyLayout, Weights } from "./weights/weights.ts";

/** Sessions of this process: two models of one hash share theirs. */
const sessions = new SessionCache();

/**
 * Reads, hashes and checks the whole folder and builds every graph, so that a bad model fails here and not at its first
 * picture; a session is made when it is first used. Throws ModelError, GraphError, ProviderError or CacheError.
 */
export async function loadDiffusionModel(path: string, options: LoadOptions): Promise<DiffusionModel> {
  emitterFor(options.provider);
  const folder = openModelFolder(path);
  const { hash, weights: hashes } = await hashModel(folder);
  const place = (name: ComponentName): string => placeFloat32(folder.weightFiles[name], hashes[name], options.cacheDir);
  const files = { unet: place("unet"), vae: place("vae"), textEncoder: place("textEncoder") };
  const text = fromWeights(files.textEncoder, keyLayouts.textEncoder, weights => ({
    embeddings: new TextEmbeddings(folder.textEncoder, weights),
    graph: buildTextEncoder(folder.textEncoder, weights),
    shapes: weights.shapes,
  }));
  const unet = fromWeights(files.unet, keyLayouts.unet, weights => ({ graph: buildUnet(folder.unet, weights), shapes: weights.shapes }));
  const graphs = {
    textEncoder: text.graph,
    unet: unet.graph,
    vaeEncoder: fromWeights(files.vae, keyLayouts.vaeEncoder, weights => buildVaeEncoder(folder.vae, weights)),
    vaeDecoder: fromWeights(files.vae, keyLayouts.vaeDecoder, weights => buildVaeDecoder(folder.vae, weights)),
  };
  const weightShapes = { unet: unet.shapes, textEncoder: text.shapes };
  return new LoadedModel(folder, describeFolder(folder, hash), weightShapes, graphs, text.embeddings, options);
}

/** Lets a graph take its weights from a file and requires that it leaves none. */
function fromWeights<T>(file: string, layout: KeyLayout, build: (weights: Weights) => T): T {
  return withSafetensors(file, source => {
    const weights = new Weights(source, layout);
    const built = build(weights);
    weights.requireAllTaken();
    return built;
  });
}

type Part = "textEncoder" | "unet" | "vaeEncoder" | "vaeDecoder";

class LoadedModel implements DiffusionModel {
  readonly description: ModelDescription;
  readonly weightShapes: WeightShapes;
  readonly #folder: ModelFolder;
  readonly #graphs: Readonly<Record<Part, Graph>>;
  readonly #embeddings: TextEmbeddings;
  readonly #options: LoadOptions;
  readonly #leases = new Map<Part, SessionLease>();
  #released = false;

  constructor(
    folder: ModelFolder,
    description: ModelDescription,
    weightShapes: WeightShapes,
    graphs: Readonly<Record<Part, Graph>>,
    embeddings: TextEmbeddings,
    options: LoadOptions,
  ) {
    this.#folder = folder;
    this.description = description;
    this.weightShapes = weightShapes;
    this.#graphs = graphs;
    this.#embeddings = embeddings;
    this.#options = options;
  }

  async encodeText({ inputIds }: EncodeTextArgs): Promise<TextEncoding> {
    const out = await this.#run("textEncoder", { embeddings: this.#embeddings.embed(inputIds) });
    const positions = inputIds.map(ids => poolingPosition(ids, this.#folder.textEncoder.eosTokenId));
    const state = (kind: string, states: readonly (TensorF32 | undefined)[]) => (skip: number) => {
      const found = states[skip];
      if (!found) throw new RangeError(`${kind} state: expected a skip of 0 to ${states.length - 1}, got ${skip}`);
      return found;
    };
    return {
      hidden: state("hidden", [undefined, out.penultimate]),
      normed: state("normed", [out.last_hidden_state, out.penultimate_normed, out.skip2_normed]),
      pooled: pickRows(out.last_hidden_state!, positions),
    };
  }

  async predict({ sample, timesteps, encoderHiddenStates, added, guidance }: PredictArgs): Promise<TensorF32> {
    if (timesteps.length !== sample.shape[0])
      throw new GraphError("timesteps", "feed", `${sample.shape[0]}, one per item`, String(timesteps.length));
    const { unet } = this.#folder;
    const { levels, flipSinToCos, frequencyShift } = unet;
    const channels = levels[0]!.channels;
    const features = timestepFeatures(timesteps, channels, { flipSinToCos, shift: frequencyShift });
    const out = await this.#run("unet", {
      sample,
      time_features: { data: features, shape: [timesteps.length, channels] },
      encoder_hidden_states: encoderHiddenStates,
      ...(unet.added && added && { added_conditions: addedConditions(added, { ...unet, added: unet.added }) }),
      ...(unet.guidanceWidth && guidance && { guidance_features: guidanceFeatures(guidance, unet.guidanceWidth) }),
    });
    return out.prediction!;
  }

  async encodeImage(image: TensorF32): Promise<{ mean: TensorF32; logvar: TensorF32 }> {
    const { mean, logvar } = await this.#run("vaeEncoder", { image });
    return { mean: mean!, logvar: logvar! };
  }

  async decodeLatents(latents: TensorF32): Promise<TensorF32> {
    return (await this.#run("vaeDecoder", { latents })).sample!;
  }

  async release(): Promise<void> {
    if (this.#released) return;
    this.#released = true;
    this.#embeddings.close();
    await Promise.all([...this.#leases.values()].map(lease => lease.release()));
  }

  async #run(part: Part, feeds: Feeds): Promise<Record<string, TensorF32>> {
    if (this.#released) throw new Error(`model ${this.description.hash}: expected one in use, got one that was released`);
    const { provider, threads } = this.#options;
    const key = `${this.description.hash}/${provider}/${threads ?? "all"}/${part}`;
    const lease = this.#leases.get(part) ?? sessions.acquire(key, () => createSession(this.#graphs[part], this.#options));
    this.#leases.set(part, lease);
    const session = await lease.session.catch(error => {
      // Not kept, so that the next run tries again.
      this.#leases.delete(part);
      throw error;
    });
    return session.run(feeds);
  }
}

/** Row positions[b] of each item of [B, L, C], as [B, C]. */
function pickRows({ data, shape }: TensorF32, positions: readonly number[]): TensorF32 {
  const [batch, length, width] = shape as [number, number, number];
  const out = new Float32Array(batch * width);
  positions.forEach((position, b) => {
    const start = (b * length + position) * width;
    out.set(data.subarray(start, start + width), b * width);
  });
  return { data: out, shape: [batch, width] };
}
