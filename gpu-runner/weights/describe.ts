/** What is known of a model folder before any session is made; serialisable, so it may cross threads and sockets. */
export interface ModelDescription {
  /** "sha256:<hex>" over the files that determine the picture. */
  hash: string;
  family: "sd1";
  predictionType: "epsilon" | "v_prediction" | "sample";
  latentChannels: number;
  /** Pixels per latent along one side: 8 for SD 1.x. */
  vaeScaleFactor: number;
  /** Pixels, from the UNet's `sample_size`. */
  defaultWidth: number;
  defaultHeight: number;
  /** The UNet's input channels: `latentChannels`, or 9 for an inpainting UNet. */
  unetInputChannels: number;
  crossAttentionDim: number;
  vae: { scalingFactor: number; shiftFactor: number };
  textEncoder: { maxLength: number; hiddenSize: number };
  tokenizer: { maxLength: number };
  /** `scheduler/scheduler_config.json` as it stands. */
  schedulerConfig: Readonly<Record<string, unknown>>;
  parameters: { unet: number; vae: number; textEncoder: number };
}
