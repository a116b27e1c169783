#!/usr/bin/env bash
# Prints the path of a Chromium for tests; installs it if it may (Debian or Ubuntu, root or sudo).
# Exit status 3: there is none, and it may not be installed here. Any other failure: installing it did not work.
set -euo pipefail

find_it() {
  local name
  for name in ${CHROMIUM:-} chromium chromium-browser google-chrome-stable google-chrome; do
    command -v "$name" && return 0
  done
  return 1
}
find_it && exit 0

command -v apt-get >/dev/null || exit 3
sudo=; [ "$(id -u)" = 0 ] || sudo="sudo -n"
$sudo true 2>/dev/null || exit 3
$sudo apt-get update -qq >&2
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >&2
find_it
