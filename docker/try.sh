#!/bin/sh
# Does in a clean Debian root what the Dockerfile does, where there is no container engine: installs Easel,
# starts it as the image's user, and has it draw. Needs root and debootstrap.
#
#     docker/try.sh /var/tmp/easel-root
#
# MIRROR is Debian's, if not the usual one; KEEP names folders and files of this machine that the root needs as
# well, such as pip's configuration and an index in a folder.
set -eu

root=${1:?where to?}
suite=bookworm
port=5399
here=$(CDPATH='' cd "$(dirname "$0")/.." && pwd)

[ -d "$root/usr" ] || debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
    "$suite" "$root" ${MIRROR:+"$MIRROR"} >/dev/null
mkdir -p "$root/src" "$root/proc" "$root/dev/shm"
mountpoint -q "$root/proc" || mount --bind /proc "$root/proc"
server=
clean_up() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    wait
    umount "$root/proc"
}
trap clean_up EXIT
[ -e "$root/dev/null" ] || mknod -m 666 "$root/dev/null" c 1 3
[ -e "$root/dev/urandom" ] || mknod -m 666 "$root/dev/urandom" c 1 9
cp /etc/resolv.conf "$root/etc/"
for kept in ${KEEP:-}; do
    mkdir -p "$root$(dirname "$kept")"
    cp -r "$kept" "$root$kept"
done

# What the Dockerfile copies, and nothing else.
for part in pyproject.toml constraints.txt README.md LICENSE config app docker/install.sh; do
    mkdir -p "$root/src/$(dirname "$part")"
    cp -r "$here/$part" "$root/src/$(dirname "$part")/"
done
chroot "$root" /bin/sh -c 'cd /src && EXTRAS=traces docker/install.sh /opt/easel'
chroot "$root" /bin/sh -c 'id easel >/dev/null 2>&1 || useradd --uid 10001 --user-group --no-create-home \
    --home-dir /data --shell /usr/sbin/nologin easel; install -d -o easel -g easel /data /models'

in_it() {
    chroot --userspec=10001:10001 "$root" env -i PATH=/opt/easel/bin:/usr/bin:/bin EASEL_HOST=0.0.0.0 \
        EASEL_PORT=$port EASEL_DATA_DIR=/data HF_HOME=/models "$@"
}
if in_it easel serve 2>/tmp/easel-try.log; then
    echo "it served strangers without a key" >&2
    exit 1
fi
grep -q 'there is no key' /tmp/easel-try.log
key=$(in_it easel keys create try 2>/dev/null | grep -o 'easel-[A-Za-z0-9_-]*' | head -n 1)
in_it easel serve 2>/tmp/easel-try.log &
server=$!
for _ in $(seq 120); do
    curl -fs "http://127.0.0.1:$port/ready" >/dev/null && break
    sleep 1
done
curl -fs "http://127.0.0.1:$port/v1/images/generations" -H "authorization: Bearer $key" \
    -H 'content-type: application/json' -d '{"prompt": "a red circle on a white background", "seed": 3}' |
    cut -c1-60
echo "It draws. The environment takes $(du -sm "$root/opt/easel" | cut -f1) MB."
