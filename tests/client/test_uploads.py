"""Large files: sent in parts by themselves, and gone on with after a cut of either side.

Judges: the requests that leave the client, and the service's own count of requests in /metrics.
"""

import asyncio
import hashlib
import os
import re
import subprocess
import time
import zipfile
from pathlib import Path

import httpx
import pytest

from adap.client.aio import AsyncClient
from adap.client.base import IN_PARTS_ABOVE_BYTES
from adap.client.client import Client, ConnectionFailedError, ProblemError
from tests.client.conftest import ADAP, write_image_folder
from tests.conftest import embedded_service


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound data set in a file of more than 64 MiB: the most of it is a note."""
    folder = tmp_path_factory.mktemp("large")
    write_image_folder(folder / "pets", per_class=2)
    path = folder / "pets.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for image in sorted((folder / "pets").rglob("*.png")):
            archive.write(image, image.relative_to(folder / "pets"))
        archive.writestr("notes.txt", os.urandom(IN_PARTS_ABOVE_BYTES + 5_000_000))
    return path


def parts_sent(client: Client) -> list[int]:
    """The numbers of the parts that this client asks to send, from now on."""
    numbers: list[int] = []

    def note(request: httpx.Request) -> None:
        if request.method == "PUT":
            numbers.append(int(request.url.path.rsplit("/", 1)[1]))

    client.http.event_hooks["request"].append(note)
    return numbers


def parts_taken(url: str) -> int:
    """How many parts a service says that it has taken since it was started."""
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    counts = re.findall(r'^\w+_count\{.*/parts/.*status="204"\} ([\d.]+)$', text, re.M)
    return sum(int(float(count)) for count in counts)


def test_only_missing_parts_are_sent_after_a_kill_of_either_side(
    large: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    with embedded_service(home) as (url, service), Client(url) as client:
        command = subprocess.Popen(
            [ADAP, "dataset", "add", str(large)],
            env={**environment, "ADAP_URL": url},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not [there for item in client.uploads.page()["data"] for there in item["received"]]:
            assert command.poll() is None, "the command ended before it could be killed"
            time.sleep(0.002)
        command.kill()
        command.wait()
        (upload,) = client.uploads.page()["data"]
        after_client = upload["received"]
        assert 0 < len(after_client) < upload["parts"] == 5

        sent = parts_sent(client)
        client.http.event_hooks["request"].append(
            lambda request: service.kill() if len(sent) == 2 else None
        )
        with pytest.raises(ConnectionFailedError):
            client.datasets.add(large)
        assert set(sent).isdisjoint(after_client)

    with embedded_service(home) as (url, _), Client(url) as client:
        (upload,) = client.uploads.page()["data"]
        assert set(after_client) < set(upload["received"])
        missing = upload["parts"] - len(upload["received"])
        finished = subprocess.run(
            [ADAP, "dataset", "add", str(large), "--watch"],
            env={**environment, "ADAP_URL": url},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert finished.returncode == 0, finished.stderr
        assert re.search(r"^cat +6 ", finished.stdout, re.M)
        assert "upload: " in finished.stderr
        assert parts_taken(url) == missing > 0
        (dataset,) = client.datasets.page()["data"]
        assert (dataset["name"], dataset["status"]) == ("pets.zip", "ready")

        sent = parts_sent(client)
        told: list[int] = []
        client.datasets.add(large, on_bytes=told.append)
        assert sent == [], "what is there whole is not sent again"
        assert sum(told) == large.stat().st_size


def test_a_file_in_parts_is_the_file(service: str, tmp_path: Path) -> None:
    file = tmp_path / "noise.zip"
    file.write_bytes(os.urandom(16 * 2**20 + 7))
    told: list[int] = []

    async def send() -> dict[str, object]:
        async with AsyncClient(service) as client:
            return await client.uploads.send(file, on_bytes=told.append)

    upload = asyncio.run(send())
    assert upload["complete"] is True
    assert upload["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert told == [0, 16 * 2**20, 7]


def test_a_file_that_changes_while_it_is_sent_makes_nothing(
    service: str, client: Client, tmp_path: Path
) -> None:
    file = tmp_path / "growing.zip"
    file.write_bytes(b"before" * 1000)
    with Client(service) as changing:
        changing.http.event_hooks["response"].append(
            lambda answer: file.write_bytes(b"after!" * 1000)
        )
        before = {item["id"] for item in client.uploads.page()["data"]}
        with pytest.raises(ProblemError, match="expected content with the SHA-256"):
            changing.uploads.send(file)
    assert {item["id"] for item in client.uploads.page()["data"]} == before
