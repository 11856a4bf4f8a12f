"""The store policy that `key writer` prints, given to a real S3 server: a backup works, and nothing else does."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import BaseError
from obstore.store import S3Store

from safehold.testing.create_gate import create_gate
from safehold.testing.program import Program
from safehold.testing.seaweed import BUCKET, S3Identity, S3Server, start_s3
from tests.disks import make_disk, same

PREFIX = "deep/vault"
PLACE = f"s3://{BUCKET}/{PREFIX}"


@dataclass
class Scene:
    """A vault on a server that knows three besides the owner: whom the policy is given to as it is printed, whom without the condition that
    this server does not know, and whom it gives more.
    """

    owner: Program
    credential: Path
    server: S3Server
    gate: S3Server
    printed: S3Identity
    writer: S3Identity
    careless: S3Identity
    wid: str

    def host(self, who: S3Identity, server: S3Server, tmp_path: Path) -> Program:
        """A host that has the writer credential and that access to the store, and nothing else."""
        mine = {"SAFEHOLD_VAULT": PLACE, "SAFEHOLD_WRITER": str(self.credential), "SAFEHOLD_PASSPHRASE": ""}
        return Program(tmp_path / "host", mine | server.environment_of(who))

    def bucket(self, who: S3Identity | None = None, server: S3Server | None = None) -> S3Store:
        """The bucket as a client of somebody's choice has it; the administrator's by default."""
        at = server or self.server
        environment = at.environment_of(who) if who else at.environment
        return S3Store(
            BUCKET,
            prefix=PREFIX,
            endpoint=at.endpoint,
            region=environment["AWS_REGION"],
            access_key_id=environment["AWS_ACCESS_KEY_ID"],
            secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )

    def stored(self) -> dict[str, bytes]:
        bucket = self.bucket()
        return {m["path"]: bytes(obstore.get(bucket, m["path"]).bytes()) for m in obstore.list(bucket).collect()}


def without_condition(policy: str) -> str:
    parsed = json.loads(policy)
    put = next(s for s in parsed["Statement"] if s["Action"] == "s3:PutObject")
    assert put.pop("Condition") == {"Null": {"s3:if-none-match": "false"}}
    return json.dumps(parsed)


def with_everything(policy: str) -> str:
    parsed = json.loads(policy)
    more = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"]
    parsed["Statement"].append({"Effect": "Allow", "Action": more, "Resource": f"arn:aws:s3:::{BUCKET}/*"})
    return without_condition(json.dumps(parsed))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    tmp = tmp_path_factory.mktemp("policy")
    (tmp / "s3").mkdir()
    owner = Program(tmp / "home", {"SAFEHOLD_VAULT": PLACE})
    credential = tmp / "writer.json"
    with start_s3(tmp / "s3") as server:
        owner.environment |= server.environment
        owner.run("vault", "init", PLACE)
        owner.run("backup", make_disk(tmp / "theirs.img", "abc"))
        owner.run("point", "hold", "theirs@latest")
        said = owner.run("key", "writer", credential, "--resource", "mine").stdout
        wid = next(w["id"] for w in owner.json("key", "list")["writers"] if w["exported"])
    policy = said[said.index("{") :]
    printed = S3Identity("printed", policy)
    writer = S3Identity("writer", without_condition(policy))
    careless = S3Identity("careless", with_everything(policy))
    # The server reads who may do what when it starts.
    with start_s3(tmp / "s3", [printed, writer, careless]) as server, create_gate(server.endpoint) as gate:
        owner.environment |= server.environment
        scene = Scene(owner, credential, server, S3Server(gate), printed, writer, careless, wid)
        scene.host(writer, scene.gate, tmp).run("backup", make_disk(tmp / "mine.img", "wxyz"))
        yield scene


def test_a_writer_backs_up_with_no_more_than_the_policy(scene: Scene, tmp_path: Path) -> None:
    """Through the gate: every put of the program says If-None-Match."""
    host = scene.host(scene.writer, scene.gate, tmp_path)
    disk = make_disk(tmp_path / "mine.img", "abc..defgh" * 6)
    assert "reads nothing" in host.run("key", "check").stdout
    done = host.run("backup", disk, "--json")
    assert "warning" not in done.stderr
    assert json.loads(done.stdout)["points"][0]["new"] > 0
    # The next one reads its index runs and the chain; on a machine that knows nothing.
    again = scene.host(scene.writer, scene.gate, tmp_path / "again")
    assert again.json("backup", disk)["points"][0]["new"] == 0
    scene.owner.run("restore", "mine@latest", "--to", tmp_path / "back.img")
    same(disk, tmp_path / "back.img")
    assert scene.owner.json("verify", "--stored")["ok"]


def test_a_server_that_does_not_know_the_condition_takes_nothing(scene: Scene, tmp_path: Path) -> None:
    """As docs/security.md says of SeaweedFS: it errs on the safe side."""
    host = scene.host(scene.printed, scene.server, tmp_path)
    before = scene.stored()
    said = host.run("backup", make_disk(tmp_path / "mine.img", "x"), "--name", "mine", code=5).stderr
    assert "the store refuses access" in said
    assert scene.stored() == before


def by_request(bucket: S3Store, verb: str, name: str, headers: dict[str, str] | None = None) -> None:
    """One plain request, signed for that name. PermissionError where it is refused."""
    url = obstore.sign(bucket, verb, name, timedelta(minutes=1))  # type: ignore[call-overload]
    try:
        urllib.request.urlopen(urllib.request.Request(url, method=verb, headers=headers or {})).close()
    except urllib.error.HTTPError as error:
        with error:
            if error.code != 403:
                raise
        raise PermissionError from error


Attempt = Callable[[S3Store, str], object]
DELETES: dict[str, Attempt] = {
    "delete": lambda bucket, name: by_request(bucket, "DELETE", name),
    "delete in bulk": lambda bucket, name: obstore.delete(bucket, name),
}
OVERWRITES: dict[str, Attempt] = {
    "put": lambda bucket, name: obstore.put(bucket, name, b"forged"),
    "multipart": lambda bucket, name: obstore.put(bucket, name, b"forged", use_multipart=True),
    "create": lambda bucket, name: obstore.put(bucket, name, b"forged", mode="create"),
}


def refused(attempt: Attempt, bucket: S3Store, name: str) -> bool:
    try:
        attempt(bucket, name)
    except (BaseError, OSError) as error:
        text = str(error)
        # 412: the object is there, and the put had said that it must not be.
        known = isinstance(error, PermissionError) or "AccessDenied" in text or "412" in text
        assert known, text
        return True
    return False


def own_and_foreign(scene: Scene) -> tuple[list[str], list[str]]:
    """Names of objects that are there: the writer's own, and all others."""
    names = sorted(scene.stored())
    own = [name for name in names if scene.wid in name and not name.startswith("writers/")]
    assert {name.split("/")[0] for name in own} == {"sessions", "index", "points"}
    foreign = [name for name in names if name not in own]
    known = {"vault.json", "keys", "writers", "sessions", "packs", "meta", "index", "points", "notes", "gc"}
    assert {name.split("/")[0] for name in foreign} == known
    return own, foreign


@pytest.mark.parametrize("how", DELETES)
def test_a_writer_deletes_nothing(scene: Scene, how: str) -> None:
    own, foreign = own_and_foreign(scene)
    before = scene.stored()
    for name in [*own, *foreign]:
        assert refused(DELETES[how], scene.bucket(scene.writer), name), name
    assert scene.stored() == before
    # Whom the policy gives more, succeeds: it is the policy that refused.
    obstore.put(scene.bucket(), f"keys/{how}", b"x")
    assert not refused(DELETES[how], scene.bucket(scene.careless), f"keys/{how}")
    assert scene.stored() == before


@pytest.mark.parametrize("how", OVERWRITES)
def test_a_writer_overwrites_nothing(scene: Scene, how: str) -> None:
    own, foreign = own_and_foreign(scene)
    before = scene.stored()
    for name in [*own, *foreign]:
        assert refused(OVERWRITES[how], scene.bucket(scene.writer, scene.gate), name), name
    # Others' names are refused by the server alone.
    for name in foreign:
        if not name.startswith(("packs/", "meta/")):
            assert refused(OVERWRITES[how], scene.bucket(scene.writer), name), name
    assert scene.stored() == before
    if how != "create":
        # Without the condition it succeeds: no server does without it.
        assert not refused(OVERWRITES[how], scene.bucket(scene.writer), own[0])
        obstore.put(scene.bucket(), own[0], before[own[0]])


def test_a_writer_creates_nothing_under_others_names(scene: Scene) -> None:
    before = scene.stored()
    create, they, it = OVERWRITES["create"], "ee" * 16, "ff" * 16
    others = [f"{kind}/{they}/{it}" for kind in ("sessions", "points", "index", "notes", "logs")]
    others += [f"{kind}/{they}" for kind in ("keys", "writers", "pins", "forget", "gc")]
    for name in [*others, "vault.json.other", f"points/{scene.wid[:-1]}", "elsewhere"]:
        assert refused(create, scene.bucket(scene.writer), name), name
        assert not refused(create, scene.bucket(scene.careless), name)
        obstore.delete(scene.bucket(), name)
    for kind in ("sessions", "index", "points", "logs"):
        assert not refused(create, scene.bucket(scene.writer, scene.gate), f"{kind}/{scene.wid}/{it}")
        obstore.delete(scene.bucket(), f"{kind}/{scene.wid}/{it}")
    assert scene.stored() == before


def test_a_writer_reads_no_keys_notes_or_points_of_others(scene: Scene) -> None:
    own, foreign = own_and_foreign(scene)
    closed = [n for n in foreign if n.split("/")[0] in ("keys", "notes", "points", "sessions")]
    assert len(closed) >= 4
    for name in closed:
        assert refused(lambda bucket, name: obstore.get(bucket, name), scene.bucket(scene.writer), name), name
        assert not refused(lambda bucket, name: obstore.get(bucket, name), scene.bucket(scene.careless), name)
    for name in own:
        assert not refused(lambda bucket, name: obstore.get(bucket, name), scene.bucket(scene.writer), name)
