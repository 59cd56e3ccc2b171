"""Signatures over reports, checked by `openssl` and by `cryptography` alone."""

import json
import re
import shlex
import shutil
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as rsa_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

from adap.client.signing import (
    SignatureMismatchError,
    SigningError,
    canonical,
    check,
    fingerprint,
    private_key,
    public_key,
    sign,
    write_key_pair,
)
from tests.client.conftest import Adap
from tests.conftest import REPOSITORY
from tests.reports import stored

NOWHERE = "--url=http://127.0.0.1:1"


def openssl(*words: object) -> "subprocess.CompletedProcess[bytes]":
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("needs openssl")
    return subprocess.run([program, *map(str, words)], capture_output=True, check=False)


@pytest.fixture(scope="module")
def pretty(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A report as it is saved: indented, in the order in which it was made."""
    report, _ = stored(tmp_path_factory.mktemp("report"))
    return json.dumps(json.loads(report.read_text()), indent=2, ensure_ascii=False).encode()


@pytest.fixture
def report(pretty: bytes, tmp_path: Path) -> Path:
    (path := tmp_path / "report.json").write_bytes(pretty)
    return path


@pytest.fixture
def key(adap: Adap, tmp_path: Path) -> Path:
    made = adap("report", "keygen", path := tmp_path / "board.pem", NOWHERE, "--json")
    assert made.code == 0, made.err
    assert made.json["public"] == str(tmp_path / "board.pub.pem")
    return path


def test_a_signature_holds_for_openssl_and_cryptography_and_for_no_changed_report(
    adap: Adap, report: Path, key: Path, tmp_path: Path
) -> None:
    signed = adap("report", "sign", report, "--key", key, NOWHERE)
    assert signed.code == 0, signed.err
    public, signature = tmp_path / "board.pub.pem", tmp_path / "report.json.sig"
    assert len(signature.read_bytes()) == 64
    assert stat.S_IMODE(key.stat().st_mode) == 0o600

    made = adap("report", "canonical", report, "-o", bytes_ := tmp_path / "bytes", NOWHERE)
    assert made.code == 0, made.err
    judge = ("pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-sigfile", signature)
    assert openssl(*judge, "-in", bytes_).returncode == 0
    theirs: Any = load_pem_public_key(public.read_bytes())
    theirs.verify(signature.read_bytes(), bytes_.read_bytes())
    good = adap("report", "verify", report, "--key", public, NOWHERE, "--json")
    assert (good.code, good.json["ok"]) == (0, True), good.err

    # The value is signed, not how it is laid out.
    text, key = report.read_bytes(), public_key(public.read_bytes())
    laid_out = json.dumps(json.loads(text), sort_keys=True).encode()
    check(laid_out, signature.read_bytes(), key)

    for before, after in ((b'"examples": 60', b'"examples": 61'), (b"a model", b"A model")):
        report.write_bytes(text.replace(before, after, 1))
        bytes_.write_bytes(canonical(report.read_bytes()))
        assert openssl(*judge, "-in", bytes_).returncode != 0
        with pytest.raises(InvalidSignature):
            theirs.verify(signature.read_bytes(), bytes_.read_bytes())
    bad = adap("report", "verify", report, "--key", public, NOWHERE)
    assert bad.code == 1
    assert "not one of this report by this key" in bad.err


def test_no_byte_of_a_figure_or_of_a_word_may_change(pretty: bytes) -> None:
    key = Ed25519PrivateKey.generate()
    signature = sign(pretty, key)
    check(pretty, signature, key.public_key())
    random = np.random.default_rng(0)
    for place in random.choice(len(pretty), 300, replace=False):
        old = pretty[place]
        other = ord("8") if old == ord("7") else ord("7")
        changed = pretty[:place] + bytes([other]) + pretty[place + 1 :]
        with pytest.raises((SigningError, SignatureMismatchError)):
            check(changed, signature, key.public_key())


def test_what_openssl_signs_verifies_and_a_key_under_a_password_asks_for_it(
    adap: Adap, report: Path, tmp_path: Path
) -> None:
    key, public = tmp_path / "key.pem", tmp_path / "pub.pem"
    made = ("genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:secret", "-out", key)
    assert openssl(*made).returncode == 0
    openssl("pkey", "-in", key, "-passin", "pass:secret", "-pubout", "-out", public)
    (content := tmp_path / "bytes").write_bytes(canonical(report.read_bytes()))
    signing = ("pkeyutl", "-sign", "-inkey", key, "-passin", "pass:secret", "-rawin")
    assert openssl(*signing, "-in", content, "-out", tmp_path / "sig").returncode == 0
    check(report.read_bytes(), (tmp_path / "sig").read_bytes(), public_key(public.read_bytes()))
    unasked = adap("report", "sign", report, "--key", key, NOWHERE)
    assert unasked.code == 1
    assert "Password of the key" in unasked.err
    assert not (tmp_path / "report.json.sig").exists()


def test_figures_are_computed_again_beside_the_signature(adap: Adap, tmp_path: Path) -> None:
    report, scores = stored(tmp_path)
    public = write_key_pair(tmp_path / "k.pem")
    signature = sign(report.read_bytes(), private_key((tmp_path / "k.pem").read_bytes()))
    (tmp_path / "report.json.sig").write_bytes(signature)
    both = ("--key", public, "--scores", scores)
    run = adap("report", "verify", report, *both, NOWHERE, "--json")
    assert run.code == 0, run.err
    assert run.json["signed_by"].startswith("sha256:")
    assert "worst_case.ap" in [line["figure"] for line in run.json["figures"]]


def test_the_walk_of_an_assessor_ends_with_a_signed_report_and_its_gate(
    adap: Adap, service: str, images: Path, model: str, tmp_path: Path
) -> None:
    document = (REPOSITORY / "docs" / "sign-off.md").read_text()
    walk = document[document.index("## The walk") : document.index("## State who")]
    statement, commands = re.findall(r"^```(?:json)?\n(.*?)^```", walk, re.M | re.S)
    (tmp_path / "statement.json").write_text(statement)
    shutil.make_archive(str(tmp_path / "pets"), "zip", images)
    content = httpx.get(f"{service}/v1/models/{model}/content", trust_env=False)
    (tmp_path / "ranker.safetensors").write_bytes(content.content)
    ids: dict[str, str] = {}
    for line in commands.splitlines():
        words = [ids.get(word, word) for word in shlex.split(line)]
        run = adap(*words[1:])
        assert run.code == 0, (line, run.out, run.err)
        for kind, found in re.findall(r"\b((?:ds|mdl|job)_)([0-9a-z]{26})\b", run.out + run.err):
            ids[f"{kind}…"] = kind + found
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["statement"]["tester"] == "R. Tester, Test House"
    assert report["statement"]["approver"] is None
    assert [gate["passed"] for gate in report["thresholds"]] == [True, True]
    (task,) = report["tasks"]
    assert task["smallest_changes"]["searched"] > 0
    assert task["universal"]["ap"] <= task["clean"]["ap"]
    resilience = next(it for it in report["clauses"] if it["clause"] == "Article 15(5)")
    assert {"tasks[].smallest_changes.kept_at_epsilon", "tasks[].universal"} <= {
        support["where"] for support in resilience["supported_by"]
    }
    assert report["provenance"]["model"]["origin"] == "uploaded"
    assert {"poisoning", "privacy", "shift"} <= {it["topic"] for it in report["not_assessed"]}
    assert "The signature is one of this report" in run.out
    assert json.loads((tmp_path / "gates.sarif").read_text())["version"] == "2.1.0"
    theirs: Any = load_pem_public_key((tmp_path / "house.pub.pem").read_bytes())
    signature = (tmp_path / "report.json.sig").read_bytes()
    theirs.verify(signature, canonical((tmp_path / "report.json").read_bytes()))


def test_keys_and_signatures_that_are_none_are_refused_in_a_sentence(
    pretty: bytes, tmp_path: Path
) -> None:
    secret, shown = tmp_path / "k.pem", write_key_pair(tmp_path / "k.pem")
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    ours, other = (public_key(shown.read_bytes()), Ed25519PrivateKey.generate().public_key())
    signature = sign(pretty, private_key(secret.read_bytes()))
    rsa = rsa_key(public_exponent=65537, key_size=2048)
    private = rsa.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = rsa.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for said, refused in (
        (f"another key than {fingerprint(other)}", lambda: check(pretty, signature, other)),
        ("of 64 bytes", lambda: check(pretty, signature[:-1], ours)),
        ("got 63 bytes", lambda: check(pretty, signature[:-1], ours)),
        ("Expected an Ed25519 key, got RSA", lambda: public_key(public)),
        ("Expected an Ed25519 key, got RSA", lambda: private_key(private)),
        ("a public Ed25519 key in PEM, got private key", lambda: public_key(secret.read_bytes())),
        ("a private Ed25519 key in PEM, got public key", lambda: private_key(shown.read_bytes())),
        ("got 6 bytes that are no PEM", lambda: public_key(b"no key")),
        ("a key is never overwritten", lambda: write_key_pair(secret)),
    ):
        with pytest.raises((SigningError, SignatureMismatchError)) as raised:
            refused()
        assert said in str(raised.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"version": 2, "version": 2, "provenance": {}}', "'version' stands twice"),
        (b'{"version": 2, "provenance": {"a": NaN}}', "NaN is no number"),
        (b'{"version": 2, "provenance": {"a": 1e999}}', "is rounded as it is read, to inf"),
        # 0.1 by another name, that a change of the last digit would leave as it is
        (b'{"version": 2, "provenance": {"a": 0.1000000000000000055}}', "is rounded as it is read"),
        (b'{"version": 2, "provenance": {"a": 9007199254740993}}', "9007199254740993"),
        (b'{"version": 2, "provenance": "\\ud800"}', "codepoints"),
        (b'\xff{"version": 2}', "utf-8"),
        (b'{"version": 2}', "got another value"),
        (b"[" * 100_000, "none"),
    ],
)
def test_text_that_could_be_read_in_two_ways_has_no_canonical_form(text: bytes, said: str) -> None:
    with pytest.raises(SigningError) as refused:
        canonical(text)
    assert said in str(refused.value)


def test_canonical_bytes_are_those_of_the_standard() -> None:
    # RFC 8785, 3.2.2 and 3.2.3: numbers as ECMAScript writes them, names by their UTF-16 units
    text = '{"version": 2.0, "provenance": [1e-7, 333333333.3333333, 4.50], "\\u20ac": "\\u000a"}'
    assert canonical(text.encode()) == (
        '{"provenance":[1e-7,333333333.3333333,4.5],"version":2,"€":"\\n"}'.encode()
    )


def test_hostile_text_is_refused_at_once() -> None:
    names = ",".join(f'"k{i}":1' for i in range(100_000))
    for text in (f'{{{names},"k99999":1}}', '{"a":1e-99999999999999999999}'):
        begun = time.process_time()
        with pytest.raises(SigningError):
            canonical(text.encode())
        assert time.process_time() - begun < 5
