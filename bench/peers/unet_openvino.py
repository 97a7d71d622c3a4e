"""The same UNet in OpenVINO: unet_openvino.py <config.json> <weights.safetensors> <scratch folder> <threads>."""
import multiprocessing, os, time
import peer

peer.need("numpy", "torch", "diffusers", "openvino")


def convert(config, weights, path):
    """PyTorch to a file."""
    import openvino, torch
    from unet_diffusers import load
    unet = load(config, weights)

    class Positional(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = unet

        def forward(self, sample, timestep, text):
            return self.unet(sample, timestep, text, return_dict=False)[0]

    example = tuple(torch.from_numpy(x) for x in peer.inputs(unet.config, 32))
    with torch.inference_mode():
        openvino.save_model(openvino.convert_model(Positional(), example_input=example), path, compress_to_fp16=False)


def main():
    import openvino
    config, weights, scratch, threads = peer.arguments()
    path = os.path.join(scratch, "unet.xml")
    # In a process of its own, so that PyTorch's memory does not count as OpenVINO's.
    process = multiprocessing.get_context("spawn").Process(target=convert, args=(config, weights, path))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise SystemExit("the conversion failed")
    core = openvino.Core()
    began = time.perf_counter()
    model = core.read_model(path)
    load_seconds = time.perf_counter() - began

    def prepare(side):
        inputs = peer.inputs(config, side)
        # Fixed shapes are what it runs fastest with; fp32 is said, since it prefers bf16 where the processor has it.
        model.reshape({port: openvino.PartialShape(x.shape) for port, x in zip(model.inputs, inputs)})
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        return lambda: request.infer(inputs, share_inputs=True, share_outputs=True)[0]

    peer.serve(prepare, load_seconds)


if __name__ == "__main__":
    main()
