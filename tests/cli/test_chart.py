"""The chart of a bench run is well-formed, to scale, and shows exactly what was measured."""

from xml.etree import ElementTree as ET

from gateway.cli.chart import svg

NAMESPACE = {"svg": "http://www.w3.org/2000/svg"}


def test_bars_are_to_scale_within_their_group() -> None:
    """The longest bar of a group fills its width, and a bar for half the value is half as long."""
    figures = {"gateway_us_per_event": 40.0, "bare_tuned_us_per_event": 20.0, "delta_delay_ms_p50": 0.2}
    root = ET.fromstring(svg("a & b", figures))
    widths = [float(bar.attrib["width"]) for bar in root.iterfind("svg:rect", NAMESPACE)]
    texts = [each.text for each in root.iterfind("svg:text", NAMESPACE)]

    assert widths == [330.0, 165.0, 330.0]
    assert texts[0] == "a & b"
    assert {"40.0", "20.0", "0.20", "CPU time of an event (µs)"} <= set(texts)


def test_group_without_figures_is_left_out() -> None:
    """A gateway that runs elsewhere has no CPU figures; one that receives without a pace has no delays."""
    root = ET.fromstring(svg("none", {"gateway_us_per_event": None, "delta_delay_ms_p50": 0}))
    texts = [each.text for each in root.iterfind("svg:text", NAMESPACE)]

    assert texts == ["none", "Delay of a delta, sender to client (ms)", "p50", "0.00"]
