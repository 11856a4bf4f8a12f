"""Logical volumes in use, backed up by LVM snapshots under a kernel that has device mapper; judged by e2fsck, dumpe2fs, cmp and checksums."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest

from safehold.testing.guest import Finished, Guest

LIBRARY = f"""
export SAFEHOLD_HOME=/run/lvmhome SAFEHOLD_PASSPHRASE=sesame
safehold() {{ "{sys.prefix}/bin/safehold" "$@"; }}
snapshots() {{ lvs --noheadings -o lv_name pool | grep -c safehold- || true; }}
free_extents() {{ vgs --noheadings -o vg_free_count pool | tr -d ' '; }}
# Numbered files, each flushed and its sum noted before the next begins.
write_load() {{
    for number in $(seq 500); do
        dd if=/dev/urandom of="$1/$number" bs=32k count=1 conv=fsync status=none
        (cd "$1"; sha256sum "$number") >> /run/acknowledged
        if [ -e /run/enough ]; then return; fi
    done
}}
wait_for_files() {{ until [ "$(cat /run/acknowledged 2>/dev/null | wc -l)" -ge "$1" ]; do sleep 0.1; done; }}
"""

Run = Callable[[str], Finished]


@pytest.fixture(scope="module")
def run(guest: Guest) -> Iterator[Run]:
    def run(script: str) -> Finished:
        done = guest.run(LIBRARY + script, seconds=240)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    run("""
modprobe -a dm-snapshot dm-thin-pool loop
mkdir -p /run/lvm-mnt /run/lvm-out
truncate -s 420M /run/pv
losetup /dev/loop5 /run/pv
pvcreate -q /dev/loop5
vgcreate -q pool /dev/loop5
lvcreate -q -W n -L 160M -n data pool
mkfs.ext4 -q /dev/pool/data
mount /dev/pool/data /run/lvm-mnt
head -c 60M /dev/urandom > /run/lvm-mnt/big
sync
safehold vault init /run/lvmvault --kit-file /run/lvmkit
""")
    yield run
    run("""
umount /run/lvm-mnt
vgremove -q -f pool
losetup -d /dev/loop5
rm -rf /run/pv /run/lvmvault /run/lvmhome /run/lvmkit /run/lvm-out
""")


def test_a_mounted_volume_under_load(run: Run) -> None:
    done = run("""
rm -f /run/acknowledged /run/enough
write_load /run/lvm-mnt &
wait_for_files 3
cp /run/acknowledged /run/before
safehold backup /dev/mapper/pool-data --name data
touch /run/enough
wait
test "$(snapshots)" = 0
safehold restore data@latest --to /run/lvm-out/data.img
dumpe2fs -h /run/lvm-out/data.img 2>/dev/null | grep features
e2fsck -fn /run/lvm-out/data.img
mount -o loop,ro /run/lvm-out/data.img /mnt
(cd /mnt; sha256sum --quiet -c /run/before)
cmp /mnt/big /run/lvm-mnt/big
(cd /mnt; sha256sum -c /run/acknowledged 2>/dev/null || true) | awk '/OK$/ { if (missing) exit 1; next } { missing = 1 } END { exit !missing }'
umount /mnt
rm /run/lvm-out/data.img
""")
    assert "LVM snapshot with room for 40 MiB" in done.stderr
    assert "needs_recovery" not in done.stdout
    assert "filesystem" in done.stdout


def test_a_program_that_has_one_open_for_writing(run: Run) -> None:
    """As a virtual machine has its disk: nothing is mounted, and the kernel keeps nobody away."""
    done = run("""
lvcreate -q -W n -L 8M -n opened pool
head -c 8M /dev/urandom > /dev/pool/opened
sleep 600 <> /dev/pool/opened &
safehold backup /dev/pool/opened --name opened
code=0; safehold restore opened@latest --to /dev/pool/opened --overwrite || code=$?
echo "code $code"
kill $!
wait || true
safehold restore opened@latest --to /run/lvm-out/opened.img
cmp /run/lvm-out/opened.img /dev/pool/opened
safehold restore opened@latest --to /dev/pool/opened --overwrite
lvremove -q -y pool/opened
rm /run/lvm-out/opened.img
""")
    assert "opened: read from an LVM snapshot" in done.stderr
    assert "code 1" in done.stdout
    assert "(sleep) has it open: /dev/pool/opened" in done.stderr


def test_a_killed_backup_leaves_a_snapshot_that_the_next_removes(run: Run) -> None:
    done = run("""
head -c 40M /dev/urandom > /run/lvm-mnt/more
lvcreate -q -s -L 4M -n mine --addtag safehold.owner=elsewhere.boot.1.2 pool/data
sync
safehold backup /dev/pool/data --name data >/dev/null 2>&1 &
until [ "$(snapshots)" = 1 ]; do sleep 0.05; done
pkill -KILL -P $! || true
kill -KILL $! 2>/dev/null || true
wait || true
echo "left: $(snapshots)"
safehold backup /dev/pool/data --name data
echo "then: $(snapshots)"
lvremove -q -y pool/mine
""")
    assert "left: 1" in done.stdout
    assert "then: 0" in done.stdout
    assert "the backup that it belonged to is gone" in done.stderr


def test_more_changes_than_there_is_room_for(run: Run) -> None:
    done = run("""
lvcreate -q -W n -l $(($(free_extents) - 1)) -n blocker pool
points=$(safehold points --json | grep -c '"id"')
(until [ "$(snapshots)" = 1 ]; do sleep 0.05; done; dd if=/dev/urandom of=/run/lvm-mnt/big bs=1M count=60 conv=notrunc,fsync status=none) &
head -c 50M /dev/urandom > /run/lvm-mnt/more
sync
code=0; safehold backup /dev/pool/data --name data || code=$?
wait
echo "code $code, snapshots $(snapshots)"
test "$(safehold points --json | grep -c '"id"')" = "$points"
""")
    assert "code 7, snapshots 0" in done.stdout
    assert "than its LVM snapshot has room for (4 MiB)" in done.stderr


def test_no_room_at_all(run: Run) -> None:
    done = run("""
lvextend -q -l +100%FREE pool/blocker
code=0; safehold backup /dev/pool/data --name data || code=$?
echo "code $code"
safehold backup /dev/pool/data --name data --require none
lvremove -q -y pool/blocker
""")
    assert "code 7" in done.stdout
    assert "its volume group has no free space for a snapshot" in done.stderr
    assert "vgextend pool" in done.stderr
    assert "none" in done.stdout


def test_brackets_around_the_snapshot(run: Run) -> None:
    done = run("""
printf '#!/bin/sh\\necho "$1" >> /run/lvm-out/hook\\necho consistency=application\\n' > /run/lvm-out/quiesce
chmod +x /run/lvm-out/quiesce
safehold backup /dev/pool/data --name data --bracket hook:/run/lvm-out/quiesce
cat /run/lvm-out/hook
code=0; safehold backup /dev/pool/data --name data --bracket fsfreeze:/run/lvm-mnt || code=$?
echo "code $code"
test "$(snapshots)" = 0
""")
    assert "freeze\nthaw\n" in done.stdout
    assert "application" in done.stdout
    assert "code 2" in done.stdout
    assert "freezes the file system by itself" in done.stderr


def test_a_thin_volume(run: Run) -> None:
    run("""
lvcreate -q --type thin-pool -L 80M -n thin pool
lvcreate -q -V 200M --thinpool thin -n slim pool
mkfs.ext4 -q /dev/pool/slim
mkdir /run/lvm-out/slim
mount /dev/pool/slim /run/lvm-out/slim
head -c 5M /dev/urandom > /run/lvm-out/slim/file
safehold backup /dev/pool/slim --name slim
test "$(snapshots)" = 0
safehold restore slim@latest --to /run/lvm-out/slim.img
e2fsck -fn /run/lvm-out/slim.img
mount -o loop,ro /run/lvm-out/slim.img /mnt
cmp /mnt/file /run/lvm-out/slim/file
umount /mnt /run/lvm-out/slim
""")
