"""A flipped bit anywhere in a part, a compacted file, its manifest or a note is noticed and named.

Each flip is tried on the checks alone, and 2,000 of each file through the readers of a run. No
sampling error: a file of these sizes whose checksum were not checked everywhere would fail.
"""

import hashlib
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from diffcert_ray.errors import StoreError
from diffcert_ray.storage.compaction import compact
from diffcert_ray.storage.local_folder import LocalFolder
from diffcert_ray.storage.manifest import Manifest
from diffcert_ray.storage.parts import StoredFile, checked
from diffcert_ray.storage.sealed_json import seal, unseal
from diffcert_ray.storage.store import RunStore
from tests.edited_parts import flipped
from tests.test_store import CERTIFICATE, UNIT
from tests.test_stored_origin import document

THROUGH_READERS = 2000


@pytest.fixture(params=[2, 1], ids=["version 2", "version 1"])
def store(request, tmp_path):
    """A run of either method version, written by this program; one part of each is compacted."""
    store = RunStore.create(str(tmp_path / "run"), document(version=request.param))
    for start in (0, 100):
        with store.writer() as writer:
            writer.add_units([replace(UNIT, start=start, stop=start + 100)])
            writer.add_certificates([replace(CERTIFICATE, image_id=start)])
        if start == 0:
            compact(store, delete_sources=True)
    return store


def files(store):
    """A file of each kind: a part, a compacted file, the manifest."""
    [part], [manifest] = store.location.list("units"), store.location.list("compact")
    [compacted] = Path(store.address, "compact").glob("*/units-*")
    return part, str(compacted.relative_to(store.address)), manifest


def test_every_bit_of_every_file_is_checked(store):
    *rows, manifest = files(store)
    for name in rows:
        data = store.location.read(name)
        assert len(data) > 2000
        file = StoredFile(name, hashlib.sha256(data).hexdigest() if "compact" in name else "")
        assert checked(file, data, store.origin) is None
        for bit in range(8 * len(data)):  # by the name alone, whatever the manifest says
            damage = checked(file, flipped(data, bit), store.origin)
            assert damage is not None
            assert "checksum is not the name's" in damage.reason
    data = store.location.read(manifest)
    assert Manifest.from_json(data, store.origin).generation == 1
    for bit in range(8 * len(data)):
        with pytest.raises((ValueError, KeyError, TypeError)):
            Manifest.from_json(flipped(data, bit), store.origin)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [0, 1, 2], ids=["part", "compacted file", "manifest"])
def test_readers_name_the_file_of_any_flipped_bit(store, kind, monkeypatch):
    name, read = files(store)[kind], LocalFolder.read
    bits, rng = 8 * len(store.location.read(name)), random.Random(5)
    assert store.units(["start"]).num_rows == 2
    for bit in rng.sample(range(bits), min(THROUGH_READERS, bits)):

        def read_flipped(self, asked, bit=bit):
            data = read(self, asked)
            return flipped(data, bit) if asked == name else data

        monkeypatch.setattr(LocalFolder, "read", read_flipped)
        with pytest.raises(StoreError, match=re.escape(name)):
            store.units(["start"])
    monkeypatch.undo()
    assert store.units(["start"]).num_rows == 2


def test_a_sealed_document_notices_every_flip_and_every_other_change():
    data = seal({"a": 1, "b": ["0" * 64]})
    assert unseal(data) == {"a": 1, "b": ["0" * 64]}
    changes = [flipped(data, bit) for bit in range(8 * len(data))]
    changes += [data[:-1], data + b" ", data.replace(b"1", b"2"), b" " + data, b"{}", b"[]", b""]
    for changed in changes:
        with pytest.raises(ValueError, match=r"checksum|object|JSON|char|decode"):
            unseal(changed)
    assert unseal(b'{"a": 1}', required=False) == {"a": 1}
