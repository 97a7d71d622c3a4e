"""The peer's side of bench/child.ts: a line of JSON in, a line of JSON out. Each peer is a script of its own beside this one."""
import json, resource, sys, time

answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not mix with the answers


def answer(message):
    print(json.dumps(message), file=answers, flush=True)


def need(*packages):
    """Ends with one clear sentence where a package is missing."""
    import importlib.util
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        answer({"error": f"{sys.executable} lacks the Python packages {', '.join(missing)} (pip install {' '.join(missing)})"})
        sys.exit(1)


def arguments():
    """Configuration (a dict), path of the weights, folder for scratch files, count of threads."""
    config, weights, scratch, threads = sys.argv[1:]
    with open(config) as file:
        return json.load(file), weights, scratch, int(threads)


def inputs(config, side):
    """The same numbers as bench/children/unet.ts."""
    import numpy as np
    channels, width = config.get("in_channels", 4), config.get("cross_attention_dim", 1280)
    return (np.sin(np.arange(channels * side * side, dtype=np.float64)).astype(np.float32).reshape(1, channels, side, side),
            np.array([500], np.int64),
            np.cos(np.arange(77 * width, dtype=np.float64)).astype(np.float32).reshape(1, 77, width))


def serve(prepare, load_seconds):
    """prepare(side) gives a function without arguments that runs once and gives the output as a numpy array; its time counts as loading."""
    import numpy as np
    side, run, prepare_seconds = None, None, 0.
    for line in sys.stdin:
        request = json.loads(line)
        if request["side"] != side:
            side, start = request["side"], time.perf_counter()
            run = prepare(side)
            prepare_seconds = time.perf_counter() - start
        start = time.perf_counter()
        output = run()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        answer({"seconds": seconds, "load_seconds": load_seconds + prepare_seconds, "peak_bytes": peak, "rms": float(np.sqrt(np.mean(np.square(output, dtype=np.float64))))})
