# Sourced by gateway/quickstart and tests/run: installs what is missing from Debian, and builds.
# Needs bash; installing needs root.

BUILD_PACKAGES="build-essential cmake ninja-build pkg-config python3 libuv1-dev node-llhttp libnghttp2-dev
 libssl-dev libcurl4-openssl-dev libhiredis-dev libzstd-dev libjansson-dev libyaml-dev libgmime-3.0-dev
 libcrypt-dev libidn2-dev redis-server ca-certificates"
DEMO_PACKAGES="swaks libnet-ssleay-perl libio-socket-ssl-perl curl"
TEST_PACKAGES="libcmocka-dev clang libclang-rt-14-dev clang-format python3-pytest python3-pytest-xdist python3-yaml postfix msmtp
 nghttp2-client openssl procps iproute2 apache2-utils strace"

# say TEXT: one line about what happens now.
say() {
    printf '== %s\n' "$*" >&2
}

# install_missing PACKAGE...: asks Debian only for what is not there yet. Services of the packages are kept from
# starting: heave runs its own Redis, and the tests their own Postfix.
install_missing() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ]; then
        say "missing packages: ${missing[*]}"
        say "run this once as root, or install them by hand"
        return 1
    fi
    say "installing ${missing[*]}"
    local policy=/usr/sbin/policy-rc.d own_policy=no status=0
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' > "$policy" && chmod +x "$policy" && own_policy=yes
    fi
    export DEBIAN_FRONTEND=noninteractive
    echo "postfix postfix/main_mailer_type select No configuration" | debconf-set-selections 2>/dev/null
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } \
        > /tmp/heave-install.$$ 2>&1 || status=$?
    if [ $status != 0 ]; then
        tail -n 20 /tmp/heave-install.$$ >&2
        say "installing failed"
    fi
    rm -f /tmp/heave-install.$$
    [ $own_policy = no ] || rm -f "$policy"
    return $status
}

# build_into FOLDER [CMAKE OPTION...]: configures and builds; prints the tail of the log on failure. BUILD_TARGETS
# names what is wanted when it is not everything.
build_into() {
    local folder=$1 log targets=()
    shift
    [ -z "${BUILD_TARGETS-}" ] || read -r -a targets <<< "--target $BUILD_TARGETS"
    mkdir -p "$folder"
    log="$folder/build.log"
    if ! { cmake -S "$ROOT" -B "$folder" -G Ninja "$@" && cmake --build "$folder" "${targets[@]}"; } > "$log" 2>&1; then
        grep -E 'error|warning|FAILED' "$log" | head -n 20 >&2
        tail -n 20 "$log" >&2
        say "the build in $folder failed; the whole log is $log"
        return 1
    fi
}
