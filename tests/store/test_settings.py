"""Settings that can never work end a program at its start, in a sentence that tells no secret."""

import pytest

from adap.store.settings import Settings


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PORT", "eighty", "valid integer"),
        ("WEBHOOK_HOSTS", "hooks.example.com, 127.0.0.1/8", "got '127.0.0.1/8'"),
        ("WEBHOOK_HOSTS", "https://hooks.example.com", "got 'https://hooks.example.com'"),
        ("WEBHOOK_HOSTS", "hooks.example.com:443", "expected names of hosts"),
        ("WEBHOOK_HOSTS", "*.example.com", "expected names of hosts"),
        ("WEBHOOK_HOSTS", "10.0.0.0/33", "expected names of hosts"),
        ("WEBHOOK_HOSTS", '["10.0.0.0/8"]', "expected names of hosts"),
        ("TRUSTED_PROXIES", "*", "expected addresses or networks"),
        ("TRUSTED_PROXIES", "10.0.0.1/8", "expected addresses or networks"),
        ("WEBHOOK_KEY", "a-secret", "at least 32"),
    ],
)
def test_a_setting_that_can_never_work_is_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(f"ADAP_{name}", value)
    with pytest.raises(SystemExit) as ended:
        Settings.read()
    (line,) = str(ended.value).splitlines()
    assert line.startswith(f"ADAP_{name}: ")
    assert said in line
    assert "a-secret" not in line


@pytest.mark.parametrize(
    "value", ["", "hooks.example.com", "Hooks.example.com, 10.0.0.0/8,127.0.0.1,fd00::/8", "a_b"]
)
def test_lists_of_hosts_are_taken_in_every_form(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("ADAP_WEBHOOK_HOSTS", value)
    assert Settings.read().webhook_hosts == value
