/** The smallest real training step: the prediction is the trained tensor itself, whatever the sample; and AdamW in plain numbers. */
import type { Optimiser } from "../../../gpu-runner/train/context.ts";
import type { StepBatch, TrainingStep } from "../../../gpu-runner/train/step.ts";
import { type TrainedTensor, TrainedTensors } from "../../../gpu-runner/train/trained-tensors.ts";
import type { TrainingRequest } from "../../../shared/training.ts";

/** @param shape of the latents, [C, h, w] @param list of tensors, whose values are repeated to fill them */
export function quadraticStep(
  shape: readonly [number, number, number],
  seen: StepBatch[] = [],
  list: readonly TrainedTensor[] = [{ name: "prediction", shape, group: "main" }],
): TrainingStep {
  const tensors = new TrainedTensors(list);
  const size = shape[0] * shape[1] * shape[2];
  const plane = shape[1] * shape[2];
  const count = tensors.values.length;
  const each = (batch: StepBatch, prediction: Float32Array, gradients: Float32Array | null) =>
    batch.timesteps.map((_, item) => {
      let loss = 0;
      for (let i = 0; i < size; i++) {
        const weight = batch.lossWeights.data[item * plane + (i % plane)]!;
        const error = prediction[i % count]! - batch.target.data[item * size + i]!;
        loss += (weight * error * error) / size;
        if (gradients) gradients[i % count]! += (2 * weight * error) / size;
      }
      return loss;
    });
  return {
    tensors,
    async gradients(batch) {
      seen.push(batch);
      return each(batch, tensors.values, tensors.gradients);
    },
    losses: async (batch, adapted) => each(batch, adapted ? tensors.values : new Float32Array(size), null),
    release: async () => {},
  };
}

export function plainAdamW(tensors: TrainedTensors): Optimiser {
  const [m, v] = [tensors.values.map(() => 0), tensors.values.map(() => 0)];
  return {
    state: new Map([
      ["m", m],
      ["v", v],
    ]),
    async step(number, { main }) {
      tensors.gradients.forEach((gradient, i) => {
        m[i] = 0.9 * m[i]! + 0.1 * gradient;
        v[i] = 0.99 * v[i]! + 0.01 * gradient * gradient;
        tensors.values[i]! -= (main * (m[i]! / (1 - 0.9 ** number))) / (Math.sqrt(v[i]! / (1 - 0.99 ** number)) + 1e-8);
      });
      return Math.hypot(...tensors.gradients);
    },
    release: async () => {},
  };
}

export const trainingRequest: TrainingRequest = {
  engine_version: 1,
  model: `sha256:${"5a".repeat(32)}`,
  settings: { method: "lora", rank: 4, alpha: 4, targets: ["attention"], text_encoder: false, dora: false, start_from: null },
  concepts: [{ token: "zxq", class_prompt: "toy" }],
  items: [{ sha256: "a".repeat(64), caption: "a zxq", width: 64, height: 64, split: "train", mask: null, condition: null, concept: 0 }],
  resolution: 64,
  steps: 6,
  batch_size: 2,
  accumulation: 2,
  caption_dropout: 0.2,
  flip: true,
  ema: 0.5,
  gradient_checkpointing: false,
  optimizer: {
    name: "adamw",
    learning_rate: 0.05,
    text_learning_rate: null,
    betas: [0.9, 0.99],
    weight_decay: 0,
    epsilon: 1e-8,
    clip_norm: null,
    moments: "float32",
    schedule: "cosine",
    warmup_steps: 1,
  },
  loss: {
    min_snr_gamma: 5,
    noise_offset: 0.05,
    zero_terminal_snr: null,
    timestep_sampling: "uniform",
    timesteps: [0, 999],
    prior_weight: 0.5,
  },
  seed: 11,
  validate_every: 2,
  checkpoint_every: 3,
  sample_every: null,
  sample_prompts: [],
  sampling: null,
  scoring: { pictures: 8, prior_pictures: 0, prior_prompts: [], steps: null },
  budget_ms: null,
  dry_run: false,
};
