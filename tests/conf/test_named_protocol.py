"""A protocol by its name from Python is the one that the command line gets by it."""

import pytest

from medfocal import config
from medfocal.errors import ConfigError

NAMES = sorted(path.stem for path in (config.conf_directory() / "protocol").glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_what_the_command_would_use(name):
    values = config.check(config.compose("evaluate", ["output=o", f"protocol={name}"]))
    assert config.named_protocol(name) == config.construct("protocol", values["protocol"])
    assert config.named_protocol(name).name == name


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("picay", r"there is no protocol 'picay' \(did you mean 'picai'\?\). Protocols: any_overlap, "),
        ("../train", r"there is no protocol '../train'. Protocols: any_overlap, .*, picai\.$"),
    ],
)
def test_an_unknown_name_is_refused_with_those_that_there_are(name, match):
    with pytest.raises(ConfigError, match=match):
        config.named_protocol(name)
