/** The product's UNet in a process of its own: `node unet.ts <config.json> <weights.safetensors> <folder for scratch files> <threads>`. */
import { z } from "zod";
import { buildUnet, timestepFeatures } from "../../gpu-runner/models/unet.ts";
import { createSession } from "../../gpu-runner/session.ts";
import { readUnetConfig } from "../../gpu-runner/weights/configs.ts";
import { weightsOfFile } from "../../gpu-runner/weights/weights.ts";
import { peakBytes, serve } from "./serve.ts";

const [configFile, weightsFile, cacheDir, threads] = z
  .tuple([z.string(), z.string(), z.string(), z.coerce.number().int()])
  .parse(process.argv.slice(2));
const config = readUnetConfig(configFile);

const began = performance.now();
const graph = buildUnet(config, weightsOfFile(weightsFile));
const session = await createSession(graph, { provider: "cpu", cacheDir, threads });
const load_seconds = (performance.now() - began) / 1000;

await serve(z.object({ side: z.int() }), async ({ side }) => {
  const feeds = inputs(side);
  const start = performance.now();
  const { prediction } = await session.run(feeds);
  const seconds = (performance.now() - start) / 1000;
  const { data } = prediction!;
  return {
    seconds,
    load_seconds,
    peak_bytes: peakBytes(),
    rms: Math.sqrt(data.reduce((sum, value) => sum + value * value, 0) / data.length),
  };
});
await session.release();

/** The same numbers as the peers' (`../peers/peer.py`): sines for the latents, cosines for the text. */
function inputs(side: number) {
  const { inChannels, crossAttentionDim, levels, flipSinToCos, frequencyShift } = config;
  const channels = levels[0]!.channels;
  return {
    sample: { data: Float32Array.from({ length: inChannels * side * side }, (_, i) => Math.sin(i)), shape: [1, inChannels, side, side] },
    time_features: { data: timestepFeatures([500], channels, { flipSinToCos, shift: frequencyShift }), shape: [1, channels] },
    encoder_hidden_states: {
      data: Float32Array.from({ length: 77 * crossAttentionDim }, (_, i) => Math.cos(i)),
      shape: [1, 77, crossAttentionDim],
    },
  };
}
