#!/usr/bin/env bash
# The README's two commands on a bare Debian 12: nothing there but the base system, git, g++ and python3-venv.
#
#     sudo bash ci/bare.sh FOLDER [REPOSITORY]
#
# Needs root and debootstrap. FOLDER must be empty or absent; it becomes the system and is left for a look. REPOSITORY is
# this one unless given: what is committed there is tested.
set -euo pipefail

root="${1:?usage: bash ci/bare.sh FOLDER [REPOSITORY]}"
repository="$(cd "${2:-$(dirname "${BASH_SOURCE[0]}")/..}" && pwd)"
command -v debootstrap >/dev/null || { echo "debootstrap is missing. Install it with: apt-get install debootstrap" >&2; exit 2; }
if [ -e "$root" ] && [ -n "$(ls -A "$root")" ]; then
    echo "$root is not empty. Give a folder that is not there yet." >&2
    exit 2
fi

mirror="${DEBIAN_MIRROR:-$(sed -n 's/^URIs: *//p; s/^deb \(http[^ ]*\) .*/\1/p' /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -1 || true)}"
debootstrap --variant=minbase --include=git,g++,python3-venv,ca-certificates bookworm "$root" ${mirror:+"$mirror"} >"$root.log" 2>&1 \
    || { tail -5 "$root.log" >&2; exit 1; }

# a machine behind a proxy of its own trusts more than Debian does
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
cp /etc/resolv.conf "$root/etc/resolv.conf"
git clone --quiet --no-local "$repository" "$root/llama-interp"
mount --bind /proc "$root/proc"
mount --bind /dev "$root/dev"
trap 'umount "$root/proc" "$root/dev"' EXIT

inside() {
    chroot "$root" /usr/bin/env -i HOME=/root LANG=C.UTF-8 PATH=/usr/local/bin:/usr/bin:/bin \
        PIP_CERT=/etc/ssl/certs/ca-certificates.crt bash -c "cd /llama-interp && $1"
}

packages="$(chroot "$root" dpkg-query -f '.\n' -W | wc -l)"
echo "== Debian $(cat "$root/etc/debian_version"), $packages packages, no pip: $(chroot "$root" sh -c 'command -v pip || echo none')"
for call in demo build test build; do
    start=$SECONDS
    echo "== python3 build.py ${call/build/}"
    inside "python3 build.py ${call/build/}"
    echo "== took $((SECONDS - start)) s"
done
