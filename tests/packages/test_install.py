"""The Debian package installed into a fresh Debian, used, and taken away again."""

from conftest import only_in_full, run

# Runs inside the fresh system, whose only user beside root is the package's.
USE = """
set -eux
apt-get install --yes --no-install-recommends /tmp/baton.deb
test "$(getent passwd baton | cut -d: -f6)" = /var/lib/baton
for config in local cluster; do runuser -u baton -- baton serve --check --config /etc/baton/$config.toml; done
runuser -u baton -- baton doctor --set engine.backend=mock
mkdir /var/lib/baton && chown baton: /var/lib/baton
runuser -u baton -- baton serve --config /etc/baton/local.toml --set engine.backend=mock --model mock &
for _ in $(seq 100); do baton probe http://127.0.0.1:8000/ready && break; sleep 0.1; done
baton probe http://127.0.0.1:8000/ready
kill %1
wait %1 || test $? = 143
echo '# mine' >>/etc/baton/cluster.toml
apt-get remove --yes baton
grep -q '# mine' /etc/baton/cluster.toml
test ! -e /usr/bin/baton
apt-get purge --yes baton
test ! -e /etc/baton && test ! -e /etc/default/baton
"""


@only_in_full
def test_a_fresh_system_installs_uses_and_purges_it(deb, tmp_path):
    (tmp_path / "use").write_text(USE)
    run(
        "mmdebstrap",
        "--variant=minbase",
        f"--customize-hook=copy-in {tmp_path}/use /tmp",
        f"--customize-hook=upload {deb} /tmp/baton.deb",
        '--customize-hook=chroot "$1" bash /tmp/use',
        "bookworm",
        tmp_path / "root.tar",
    )
