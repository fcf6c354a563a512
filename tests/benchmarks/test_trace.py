"""The picture of a trace."""

import xml.etree.ElementTree as ET

import pytest

from benchmarks.otlp import Span
from benchmarks.trace import COLOURS, picture

JOB = Span("cosmos3", "job", "t", "1", "0", 10.0, 14.0, False, {"video_id": "v"})
CALL = JOB._replace(name="call <Denoiser>", id="2", parent="1", start_s=11.0, end_s=13.0, attributes={})
PART = CALL._replace(name="part", id="3", parent="2", failed=True)
OTHER = JOB._replace(name="other", id="4", start_s=13.5)


def test_every_span_is_a_row_below_the_one_that_it_is_a_part_of() -> None:
    drawn = ET.fromstring(picture([JOB, CALL, PART, OTHER]))
    texts = [element for element in drawn if element.tag.endswith("text")]
    bars = [element for element in drawn if element.tag.endswith("rect")][1:]
    assert [text.text for text in texts[::2]] == ["job", "call <Denoiser>", "part", "other"]
    assert [int(text.attrib["x"]) for text in texts[::2]] == [4, 16, 28, 4]
    assert [text.text for text in texts[1::2]] == ["4.000 s", "2.000 s", "2.000 s", "0.500 s"]
    widths = [float(bar.attrib["width"]) for bar in bars]
    assert [width / widths[0] for width in widths] == pytest.approx([1, 0.5, 0.5, 0.125], abs=0.001)
    whose = ["ours", "serve", "failed", "ours"]
    assert [bar.attrib["fill"] for bar in bars] == [COLOURS[one] for one in whose]
