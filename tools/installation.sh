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
  # Where the programs look.
  cudadir=/usr/local/lib/quantease/cuda
  docdir=$prefix/share/doc/quantease
  sharedir=$prefix/share/quantease
  unitdir=$lib/systemd/system
  sysusers=$lib/sysusers.d/quanteased.conf
  tmpfiles=$lib/tmpfiles.d/quanteased.conf
  mandir=$prefix/share/man
  installed_files=(
    "$bindir/quantease" "$bindir/quanteased"
    "$unitdir/quanteased.service" "$unitdir/quanteased.socket" "$sysusers" "$tmpfiles"
    "$unitdir/quanteased-hooks.service" "$unitdir/quanteased-hooks.path"
    "$sharedir/quanteased-gpu.conf" "$sharedir/quanteased-slurm.conf" "$sharedir/quanteased.yaml" "$sharedir/quantease.rules.yaml"
    "$docdir/OPERATIONS.md" "$docdir/CLUSTER.md"
  )
  local program shell hook
  for hook in config/hooks/*; do installed_files+=("$sharedir/hooks/${hook##*/}"); done
  for program in quantease quanteased; do
    for shell in bash zsh fish; do installed_files+=("$(completion_place "$shell" "$program")"); done
  done
}

# completion_place SHELL PROGRAM: where the shell looks for it by itself.
completion_place() {
  local zsh=site-functions
  # Debian's zsh does not look into /usr/share/zsh/site-functions; packages have a directory of their own there.
  [ "$prefix" != /usr ] || zsh=vendor-completions
  case $1 in
    bash) echo "$prefix/share/bash-completion/completions/$2" ;;
    zsh) echo "$prefix/share/zsh/$zsh/_$2" ;;
    fish) echo "$prefix/share/fish/vendor_completions.d/$2.fish" ;;
  esac
}

# Which commands have a page depends on the version that was installed, so this goes by the names, which are ours:
# quantease.1, quanteased.8 and those that begin with either and a hyphen.
remove_manual() {
  local pages=$destdir$mandir
  change rm -f "$pages"/man1/quantease.1 "$pages"/man1/quantease-*.1 \
    "$pages"/man8/quanteased.8 "$pages"/man8/quanteased-*.8
}

# Runs a command that changes the system: as root, or as whoever fills DESTDIR.
change() {
  if [ -n "$destdir" ]; then "$@"; else as_root "$@"; fi
}

# Whether systemd runs here, and this is no staging.
is_live() { [ -z "$destdir" ] && [ -d /run/systemd/system ]; }
