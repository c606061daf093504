"""Compares a run's TensorBoard events, read by TensorBoard itself, with its logs.

    python tests/interop/tensorboard_events.py RUN

needs the package `tensorboard`. Every finite number of log.jsonl and validation.jsonl must be in the events with its step
and, as f32, its value; every picture must be there to the byte; and nothing else may be.
"""

import json
import math
import pathlib
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PluginAccumulator


def records(path):
    """The whole lines of a log."""
    if path.exists():
        for line in path.read_bytes().split(b"\n")[:-1]:
            yield json.loads(line)


def expected(run):
    """Scalars and pictures by tag, as lists of (step, time, value)."""
    scalars, pictures = {}, {}
    for log, prefix in (("log.jsonl", ""), ("validation.jsonl", "validation/")):
        for record in records(run / log):
            step, at = record["step"], record.get("time", 0.0)
            for key, value in record.items():
                number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
                if number and key not in ("step", "time"):
                    value = struct.unpack("f", struct.pack("f", value))[0]
                    scalars.setdefault(f"{prefix}{record['stage']}/{key}", []).append((step, at, value))
            picture = run / record["picture"] if "picture" in record else None
            if picture and picture.exists():
                tag = f"{prefix}{record['stage']}/picture"
                pictures.setdefault(tag, []).append((step, at, picture.read_bytes()))
    return scalars, pictures


def main():
    run = pathlib.Path(sys.argv[1])
    scalars, pictures = expected(run)
    everything = {"scalars": 0, "images": 0, "tensors": 0}
    events = EventAccumulator(str(run / "tensorboard"), size_guidance=everything).Reload()
    tags = events.Tags()
    assert sorted(tags["scalars"]) == sorted(scalars), set(tags["scalars"]) ^ set(scalars)
    assert sorted(tags["images"]) == sorted(pictures), set(tags["images"]) ^ set(pictures)
    for tag, wanted in scalars.items():
        got = [(e.step, e.wall_time, e.value) for e in events.Scalars(tag)]
        assert got == wanted, f"{tag}: {got[:3]} … is not {wanted[:3]} …"
    for tag, wanted in pictures.items():
        got = [(e.step, e.wall_time, e.encoded_image_string) for e in events.Images(tag)]
        assert got == wanted, f"{tag}: pictures differ"
        for event, (_, _, png) in zip(events.Images(tag), wanted):
            assert (event.width, event.height) == struct.unpack(">II", png[16:24]), f"{tag}: size"
    # what TensorBoard's own pages read: scalars and images as the plugins know them
    plugins = PluginAccumulator(str(run / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    shown = {name: len(plugins.PluginTagToContent(name)) for name in ("scalars", "images")}
    assert shown == {"scalars": len(scalars), "images": len(pictures)}, shown
    count = lambda tags: sum(map(len, tags.values()))
    print(f"{count(scalars)} scalars in {len(scalars)} tags and {count(pictures)} pictures in {len(pictures)} tags agree")


if __name__ == "__main__":
    main()
