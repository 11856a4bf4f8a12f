"""Live volumes under the kernel's own nbd, with LVM and md over several of them: groups are captured under load, and judged by fsck and checksums."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from safehold.testing.guest import Finished, Guest, start_guest

LIBRARY = f"""
export SAFEHOLD_HOME=/run/home SAFEHOLD_IDENTITY=/run/identity.pem
safehold() {{ "{Path(sys.executable).parent}/safehold" "$@"; }}
connect() {{ nbd-client -unix /run/home/run/volumes.nbd -N "$1" "$2" >/dev/null; }}
disconnect() {{ for device; do nbd-client -d "$device" >/dev/null; done; }}
# Writes numbered files one after the other, each flushed before the next begins; /run/acknowledged has the sums of those that were.
write_load() {{
    for number in $(seq 300); do
        dd if=/dev/urandom of="$1/$number" bs=96k count=1 conv=fsync status=none
        (cd "$1"; sha256sum "$number") >> /run/acknowledged
        if [ -e /run/enough ]; then return; fi
    done
}}
wait_for_files() {{ until [ "$(cat /run/acknowledged 2>/dev/null | wc -l)" -ge "$1" ]; do sleep 0.1; done; }}
wait_for_point() {{ until safehold points --json | grep -q '"name": "'"$1"'"'; do sleep 0.5; done; }}
# What a point says of disk $1 about the label of type $2: its $3.
recorded() {{
    safehold point show "$1@$(cat /run/second)" --json |
        jq -er --arg name "$1" --arg type "$2" --arg field "$3" \\
            '.members[] | select(.name == $name).contents[] | select(.type == $type)[$field]'
}}
# In $1 is all that had been acknowledged before the snapshot, and of what came later a part without gaps; `after` is not there.
judge() {{
    test ! -e "$1/after" && (cd "$1" && sha256sum --quiet -c /run/before) || return 1
    (cd "$1"; sha256sum -c /run/acknowledged 2>/dev/null || true) > /run/judged
    awk '/OK$/ {{ if (missing) torn = 1; next }} {{ missing = 1 }} END {{ exit torn || !missing }}' /run/judged
}}
"""


SERVE = """
modprobe nbd nbds_max=8
mkdir -p /run/mnt
safehold volume serve >/run/serve.log 2>&1 &
until [ -S /run/home/run/volumes.control ]; do sleep 0.2; done
"""


class Machine:
    """The guest with a vault and the volume service in it."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self.share = guest.share

    def run(self, script: str, *, code: int | None = 0) -> Finished:
        done = self._guest.run(LIBRARY + script, code=code, seconds=600)
        assert "Traceback" not in done.stderr, done.stderr
        return done


@pytest.fixture(scope="module")
def machine(guest: Guest) -> Iterator[Machine]:
    made = Machine(guest)
    made.run(
        """
openssl genpkey -algorithm x25519 -out /run/identity.pem
chmod 600 /run/identity.pem
openssl pkey -in /run/identity.pem -pubout -out /run/public.pem
(
    unset SAFEHOLD_IDENTITY
    export SAFEHOLD_PASSPHRASE=sesame
    safehold vault init /run/vault --kit-file /run/kit.txt
    safehold key add --recipient /run/public.pem
)
"""
        + SERVE
    )
    yield made
    # Tests of other modules may come between, and this be made once more.
    made.run("safehold volume stop; rm -rf /run/home /run/vault /run/kit.txt /run/*.pem")


def test_xfs_on_kernel_nbd_frozen_by_hand(machine: Machine) -> None:
    machine.run("""
safehold volume create data --size 320M
connect data /dev/nbd0
mkfs.xfs -q /dev/nbd0
mount /dev/nbd0 /run/mnt
rm -f /run/acknowledged /run/enough
write_load /run/mnt &
wait_for_files 5
fsfreeze --freeze /run/mnt
cp /run/acknowledged /run/before
safehold volume snapshot data || failed=1
fsfreeze --unfreeze /run/mnt
test -z "${failed:-}"
touch /run/enough
wait
echo late > /run/mnt/after
umount /run/mnt
disconnect /dev/nbd0
wait_for_point data
safehold restore data@latest --to volume:data2
connect data2 /dev/nbd0
mount /dev/nbd0 /run/mnt
judge /run/mnt
umount /run/mnt
xfs_repair -n /dev/nbd0
disconnect /dev/nbd0
""")


def test_an_attached_volume_outlives_its_service(machine: Machine) -> None:
    """Under load the service is killed and started again; later it stays away for longer than requests wait."""
    done = machine.run("""
safehold volume create kept --size 64M
device=$(safehold volume attach kept)
echo "device $device"
mkfs.ext4 -q "$device"
safehold volume detach kept
test "$(cat /sys/block/nbd0/size)" = 0
safehold volume attach kept --mount /run/mnt
rm -f /run/acknowledged /run/enough
write_load /run/mnt &
load=$!
wait_for_files 3
kill -KILL "$(pgrep -f 'safehold volume serve')"
sleep 2
cp /run/acknowledged /run/before
safehold volume serve >>/run/serve.log 2>&1 &
until [ "$(wc -l < /run/acknowledged)" -gt "$(($(wc -l < /run/before) + 3))" ]; do sleep 0.5; done
touch /run/enough
wait $load
umount /run/mnt
e2fsck -fn "$device"
mount "$device" /run/mnt
(cd /run/mnt; sha256sum --quiet -c /run/acknowledged)
safehold volume stop
code=0
dd if="$device" of=/dev/null bs=4k count=1 iflag=direct 2>/run/said || code=$?
echo "read $code, $(cat /run/said)"
safehold status || true
safehold volume serve >>/run/serve.log 2>&1 &
until dd if="$device" of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null; do sleep 0.5; done
safehold volume detach kept
test ! -e "/sys/block/${device#/dev/}/pid"
e2fsck -fn "$(safehold volume attach kept)"
safehold volume detach kept
safehold volume list
cat /run/serve.log
""")
    assert "device /dev/nbd" in done.stdout
    assert "read 1" in done.stdout
    assert "Input/output error" in done.stdout
    assert "nobody serves it" in done.stdout


def test_a_device_is_not_taken_from_whoever_has_it(machine: Machine) -> None:
    """Nor lost by an attach that was killed."""
    done = machine.run(f"""
safehold volume create held --size 64M
cat > /run/killed.py <<'END'
import os, pathlib
from safehold.adapters.linux import attach
attach._keep = lambda *_: os.kill(os.getpid(), 9)
run = pathlib.Path("/run/home/run")
attach.attach(run / "attached", run / "volumes.nbd", "held")
END
"{sys.executable}" /run/killed.py || test $? = 137
ls /sys/block/nbd*/backend
device=$(safehold volume attach held)
test "$(ls /sys/block/nbd*/backend)" = "/sys/block/${{device#/dev/}}/backend"
refused() {{
    code=0
    safehold volume detach held 2>/run/said || code=$?
    cat /run/said
    test $code = 1
    dd if="$device" of=/dev/null bs=4k count=1 iflag=direct status=none
}}
sleep 600 < "$device" &
refused
kill $!
pvcreate -q "$device"
vgcreate -q held "$device"
lvcreate -q -W n -l 50%FREE -n low held
refused
vgremove -q -f held
mkfs.ext4 -q -F "$device"
safehold volume detach held
device=$(safehold volume attach held --mount /run/mnt --options noatime | cut -d' ' -f1)
mount --make-private /run/mnt
unshare --mount --propagation private sleep 600 &
sleep 2
refused
findmnt -no OPTIONS /run/mnt
touch /run/mnt/written
kill $!
safehold volume detach held
test ! -e "/sys/block/${{device#/dev/}}/pid"
""")
    assert "(sleep) has it open" in done.stdout
    assert "/dev/mapper/held-low lies on nbd0" in done.stdout
    assert "(sleep) sees it mounted on /run/mnt" in done.stdout
    assert "noatime" in done.stdout


def test_a_service_that_stalls_and_a_vault_that_is_away(machine: Machine) -> None:
    """The last write is the last, whatever a stalled service takes up again. While the vault is away, only what is missing gives errors."""
    machine.run("""
safehold volume create source --size 128M
safehold volume create beside --size 16M
device=$(safehold volume attach source)
beside=$(safehold volume attach beside)
dd if=/dev/urandom of="$device" bs=1M count=128 oflag=direct status=none
block() { printf "$1%.0s" $(seq 4096); }
service=$(pgrep -f 'safehold volume serve')
kill -STOP $service
for one in "$device" "$beside"; do
    block a | dd of="$one" bs=4k seek=7 oflag=direct iflag=fullblock conv=notrunc status=none &
    dd if="$one" of=/dev/null bs=4k skip=9 count=1 iflag=direct status=none &
done
sleep 40
test "$(jobs -r | wc -l)" = 4
kill -CONT $service
for one in "$device" "$beside"; do
    block b | dd of="$one" bs=4k seek=7 oflag=direct iflag=fullblock conv=notrunc status=none
done
for job in $(jobs -p); do wait $job || exit 7; done
sleep 2
for one in "$device" "$beside"; do
    for turn in 1 2; do
        test "$(dd if="$one" bs=4k skip=7 count=1 iflag=direct status=none | tr -d b | wc -c)" = 0
    done
    block c | dd of="$one" bs=4k seek=7 oflag=direct iflag=fullblock conv=notrunc status=none
    test "$(dd if="$one" bs=4k skip=7 count=1 iflag=direct status=none | tr -d c | wc -c)" = 0
done
safehold volume detach beside
""")
    done = machine.run("""
device=$(jq -r .device /run/home/run/attached/source.json)
tail -c 65536 "$device" > /run/end
safehold volume detach source
safehold volume snapshot source --wait
safehold restore source@latest --to volume:far
mv /run/vault /run/away
test "$(safehold volume show far --json | jq .missing)" -gt 50000000
device=$(safehold volume attach far)
began=$(date +%s)
(
    code=0
    dd if="$device" of=/dev/null bs=64k skip=2047 iflag=direct 2>/run/far-said || code=$?
    echo "$code $(($(date +%s) - began))" > /run/far
) &
sleep 1
dd if=/dev/urandom of=/run/piece bs=512k count=8 status=none
dd if=/run/piece of="$device" bs=512k seek=100 oflag=direct conv=notrunc,fsync status=none
dd if="$device" bs=512k skip=100 count=8 iflag=direct status=none | cmp - /run/piece
test "$(($(date +%s) - began))" -lt 15
wait
cat /run/far-said
read code seconds < /run/far
test "$code" = 1
test "$seconds" -lt 100
mv /run/away /run/vault
dd if="$device" bs=64k skip=2047 iflag=direct status=none | cmp - /run/end
safehold volume detach far
""")
    assert "Input/output error" in done.stdout


STRIPES = {
    "lvm": """
SIZE=64M
make() {
    pvcreate -q "$DA" "$DB"
    vgcreate -q group "$DA" "$DB"
    lvcreate -q -W n -i 2 -I 64k -l 100%FREE -n stripe group
    mkfs.ext4 -q /dev/group/stripe
}
find_set() {
    GROUP=$(recorded $A LVM2_member label)
    test "$GROUP" = "$(recorded $B LVM2_member label)"
    for one in "$A:$DA" "$B:$DB"; do
        test "$(recorded ${one%:*} LVM2_member uuid)" = "$(pvs --noheadings -o pv_uuid ${one#*:} | tr -d ' -')"
    done
}
assemble() { vgchange -q -a y ${GROUP:=group}; }
stop() { vgchange -q -a n ${GROUP:=group}; }
mount_it() { mount /dev/${GROUP:=group}/stripe /run/mnt; }
check() { e2fsck -fn /dev/$GROUP/stripe; }
""",
    "md": """
SIZE=200M
make() {
    mdadm --quiet --create /dev/md7 --level=0 --chunk=64 --raid-devices=2 --metadata=1.2 "$DA" "$DB"
    mkfs.xfs -q /dev/md7
}
find_set() {
    UUID=$(recorded $A linux_raid_member uuid)
    test "$UUID" = "$(recorded $B linux_raid_member uuid)"
}
assemble() { mdadm --quiet --assemble /dev/md7 ${UUID:+--uuid=$UUID} "$DA" "$DB"; }
stop() { mdadm --quiet --stop /dev/md7; }
mount_it() { mount /dev/md7 /run/mnt; }
check() { xfs_repair -n /dev/md7; }
""",
}


@pytest.mark.parametrize("kind", STRIPES)
def test_a_stripe_over_two_volumes_is_captured_as_one(machine: Machine, kind: str, tmp_path: Path) -> None:
    """Two snapshots under load; the second is whole, and comes back on another machine. One half of each is not: the judges would see halves
    of different instants.
    """
    parts = f"{STRIPES[kind]}\nA={kind}a B={kind}b\n"
    machine.run(f"""{parts}
safehold volume create $A --size $SIZE
safehold volume create $B --size $SIZE
DA=$(safehold volume attach $A)
DB=$(safehold volume attach $B)
make
mount_it
rm -f /run/acknowledged /run/enough
write_load /run/mnt &
wait_for_files 3
safehold volume snapshot --group $A --group $B --wait --json | jq -r .point > /run/first
wait_for_files $(($(wc -l < /run/acknowledged) + 3))
cp /run/acknowledged /run/before
if safehold volume snapshot $A --bracket fsfreeze:/run/mnt 2>/run/refused; then exit 8; fi
grep -q "lies on $DB too" /run/refused
safehold volume snapshot --group $A --group $B --bracket fsfreeze:/run/mnt --wait --json > /run/answer
test "$(jq -r .achieved /run/answer)" = filesystem
jq -r .point /run/answer > /run/second
touch /run/enough
wait
echo late > /run/mnt/after
umount /run/mnt
stop
safehold volume detach $A
safehold volume detach $B
tar -C /run -cf /share/saved.tar vault identity.pem acknowledged before second
""")
    with start_guest(tmp_path / "second") as another:
        (machine.share / "saved.tar").rename(another.share / "saved.tar")
        second = Machine(another)
        second.run("tar -C /run -xf /share/saved.tar\nsafehold key check --vault /run/vault\n" + SERVE)
        second.run(f"""{parts}
export SAFEHOLD_VAULT=/run/vault
# By its id: a copied vault has the times of the copying.
safehold restore $A@$(cat /run/second) --to volume:$A
safehold restore $B@$(cat /run/second) --to volume:$B
DA=$(safehold volume attach $A)
DB=$(safehold volume attach $B)
find_set
assemble
mount_it
judge /run/mnt
umount /run/mnt
check
stop
safehold volume detach $A
safehold volume detach $B
""")
    machine.run(f"""{parts}
safehold restore $A@$(cat /run/first) --to volume:$A-earlier
safehold restore $B@latest --to volume:$B-other
DA=$(safehold volume attach $A-earlier)
DB=$(safehold volume attach $B-other)
assemble
if mount_it && (judge /run/mnt); then echo 'halves of two instants pass for one' >&2; exit 9; fi
umount /run/mnt || true
stop
safehold volume detach $A-earlier
safehold volume detach $B-other
""")
