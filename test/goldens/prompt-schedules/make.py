"""Texts of changing prompts at each step, by A1111's own parser.

    python make.py <stable-diffusion-webui/modules/prompt_parser.py>      (lark)

writes cases.json beside itself: random prompts of editing, alternation, emphasis and plain brackets, nested, and what else stands in WRITTEN.
"""
import importlib.util
import json
import os
import random
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
WRITTEN = ["", "plain", "[", "]", "a ) b", "[a:b", "a:b]", "[a:b:]", "[:0.5]", "[::3]", "[a::3]", "[:a:3]", "[a:b:c:3]", "[a:b: 3 ]", "[a:b:-1]", "[a:b:0]",
           "[a:b:99]", "[a:b:1.0]", "[a:b:1e0]", "[a:b:.5]", "[a:b:5.]", "[a|]", "[|a]", "[a||b]", "[a|b|c]", "[[a|b]:c:4]", "[(a:1.2)|(b)]", "(a:[b:c:2])",
           r"[a\:b:c:3]", r"\[a:b:3\]", r"[a\|b|c]", "[a]", "[[a]]", "((a) [b:c:0.3])", "[a:[b:[c:d:6]:4]:2]", "a [b:0.25] [c:0.75] d", "[a:b:3]|c", "[a b:c d:0.5]",
           "[a, b|c: d]", "(a|b) [c:d:3]", "[c:d:3] | [e|f]", "[a:(b|c):3]", "[[a:b|c:2]|d]", "[a|b:3]", "[a:b|c:3]"]


def text(rng, depth):
    words = ["a", "red fox", " ", ", ", "snow", r"\(", r"\]", "sea "]
    parts = []
    for _ in range(rng.randint(1, 3)):
        kind = rng.choice(["word", "word", "edit", "insert", "remove", "alternate", "up", "weight", "down"]) if depth else "word"
        inner = lambda: text(rng, depth - 1)
        when = rng.choice(["3", "0.5", ".25", " 4", "0", "8", "1.5", "12", "-2"])
        parts.append({"word": lambda: rng.choice(words), "edit": lambda: f"[{inner()}:{inner()}:{when}]", "insert": lambda: f"[{inner()}:{when}]",
                      "remove": lambda: f"[{inner()}::{when}]", "alternate": lambda: f"[{'|'.join(inner() for _ in range(rng.randint(2, 4)))}]",
                      "up": lambda: f"({inner()})", "weight": lambda: f"({inner()}:1.2)", "down": lambda: f"[{inner()}]"}[kind]())
    return "".join(parts)


def main():
    spec = importlib.util.spec_from_file_location("prompt_parser", sys.argv[1])
    parser = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(parser)
    rng = random.Random(5)
    cases = []
    for i, prompt in enumerate([*WRITTEN, *(text(rng, 3) for _ in range(60))]):
        for steps, second in ((8, None), (8, 5)) if i % 4 == 0 else ((8, None),):
            [schedule] = parser.get_learned_conditioning_prompt_schedules([prompt], steps, second)
            count = second or steps
            texts = [next(words for last, words in schedule if step <= last) for step in range(1, count + 1)]
            cases.append({"name": f"schedule-{i}{'-second' if second else ''}", "kind": "prompt-schedule",
                          "params": {"prompt": prompt, "steps": count, **({"earlierSteps": steps} if second else {})}, "expectedJson": {"texts": texts},
                          "reference": "A1111's get_learned_conditioning_prompt_schedules"})
    with open(os.path.join(HERE, "cases.json"), "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


main()
