# Where everything goes; what install, uninstall and check-units share. Sourced after lib.sh.
# shellcheck shell=bash disable=SC2034

prefix=/usr/local
destdir=${DESTDIR:-}
config=/etc/quantease/quanteased.yaml
spool=/var/spool/quantease
state=/var/lib/quantease
cache=/var/cache/quantease

# Absolute, and without a slash at the end or anything that would mean something to sed.
require_plain_path() {
  [[ $2 =~ ^/[A-Za-z0-9._/+-]*[A-Za-z0-9._+-]$ && ! $2 =~ (^|/)\.\.?(/|$) && $2 != *//* ]] \
    || fail "$1 $2 is not possible; mend: an absolute path of letters, digits and . _ + -"
}

# The places that follow from the prefix. systemd looks for units below /usr and /usr/local alone.
settle_places() {
  require_plain_path --prefix "$prefix"
  [ -z "$destdir" ] || require_plain_path DESTDIR "$destdir"
  local lib=/usr/local/lib
  [ "$prefix" != /usr ] || lib=/usr/lib
  bindir=$prefix/bin
  docdir=$prefix/share/doc/quantease
  sharedir=$prefix/share/quantease
  unitdir=$lib/systemd/system
  sysusers=$lib/sysusers.d/quanteased.conf
  tmpfiles=$lib/tmpfiles.d/quanteased.conf
  installed_files=(
    "$bindir/quantease" "$bindir/quanteased"
    "$unitdir/quanteased.service" "$unitdir/quanteased.socket" "$sysusers" "$tmpfiles"
    "$sharedir/quanteased-gpu.conf" "$sharedir/quanteased.yaml" "$docdir/OPERATIONS.md"
  )
}

# Runs a command that changes the system: as root, or as whoever fills DESTDIR.
change() {
  if [ -n "$destdir" ]; then "$@"; else as_root "$@"; fi
}

# Whether systemd runs here, and this is no staging.
is_live() { [ -z "$destdir" ] && [ -d /run/systemd/system ]; }
