"""What runs in the proxy's container: shell scripts, whose input is in environment variables."""

# Version, free disk in KiB, what the running nginx says of $APP, and the files $SITE and $BEFORE.
# 97: no client, 98: no nginx. `--silent`: nginx took the question and gave no answer.
LOOK = r"""
command -v nginx >/dev/null || exit 98
nginx -v 2>&1
! command -v curl >/dev/null || echo --curl
echo --disk
df -Pk / | awk 'END { print $4 }'
for try in 1 2 3; do
    if command -v curl >/dev/null; then
        said=$(curl -s --noproxy '*' --max-time 3 -H "Host: $APP.nonstop" "http://127.0.0.1:$PORT/")
    elif command -v wget >/dev/null; then
        said=$(wget -q -T 3 -O - --header "Host: $APP.nonstop" "http://127.0.0.1:$PORT/" 2>&1)
    else
        exit 97
    fi
    code=$?
    case "$code $said" in 0\ * | 7\ * | *refused*) break ;; esac
    sleep 0.2
done
case "$code $said" in
    0\ *) printf -- '--status\n%s' "$said" ;;
    7\ * | *refused*) printf -- --refused ;;
    *) printf -- '--silent %s' "$code" ;;
esac
for file in "$SITE" "$BEFORE"; do
    printf '\n--file\n'
    [ ! -e "$file" ] || cat "$file"
done
"""

# The configuration with $TEXT as $NAME in it, on a copy. 95: nginx rejects it, 96: it is not read.
CHECK = r"""
set -e
conf=${CONF:-$(nginx -V 2>&1 | tr ' ' '\n' | sed -n 's/^--conf-path=//p')}
copy=$(mktemp -d /dev/shm/nonstop.XXXXXX)
trap 'rm -rf "$copy"' EXIT
root=$(dirname "$conf")
mirror() {
    mkdir -p "$copy$1"
    [ ! -d "$1" ] || cp -a "$1/." "$copy$1"
    grep -rlF -- "$1/" "$copy" | while IFS= read -r file; do
        sed -i "s#$1/#$copy$1/#g" "$file"
    done
}
mirror "$root"
case "$DIRECTORY/" in "$root"/*) ;; *) mirror "$DIRECTORY" ;; esac
mkdir -p "$copy$DIRECTORY"
if [ -n "$TEXT" ]; then printf '%s' "$TEXT" > "$copy$DIRECTORY/$NAME"; fi
code=0
nginx -T -c "$copy$conf" > "$copy/dump" 2> "$copy/words" || code=95
sed "s#$copy##g" "$copy/words"
if [ $code = 0 ] && [ -n "$TEXT" ]; then
    grep -qF "# configuration file $copy$DIRECTORY/$NAME:" "$copy/dump" || code=96
fi
exit $code
"""

# $TEXT becomes $SITE at once, or the site goes; what it was is $BEFORE. Prints what nginx would
# read and `--held`: no other site changes until standard input is closed. 92: another one is
# changing all the while. 94: the lock is neither $HOLDER's nor, where that may be, free; prints
# whose it is.
INSTALL = r"""
set -e
exec 8>>"$PROXY_LOCK"
tries=0
until flock -n 8; do
    tries=$((tries + 1))
    [ $tries -lt 600 ] || exit 92
    sleep 0.1
done
owner=free
flock -n "$LOCK" true || owner=$(cat "$LOCK")
[ "$owner" = "$HOLDER" ] || [ "$owner" = "$OR" ] || { echo "$owner"; exit 94; }
umask 022
trap 'rm -f "$NEW"' EXIT
if [ -e "$SITE" ]; then
    cat "$SITE" > "$NEW"
    mv -f "$NEW" "$BEFORE"
fi
if [ -n "$TEXT" ]; then
    printf '%s' "$TEXT" > "$NEW"
    mv -f "$NEW" "$SITE"
    cat "$SITE"
else
    rm -f "$SITE"
fi
printf '\n--held\n'
timeout 60 cat >/dev/null
"""

# Holds the lock while something comes on standard input: prints `held`, or who has it. That it is
# open would not be enough: it stays so when an engine with live-restore was restarted.
LOCK = """
command -v flock >/dev/null || { echo "no flock"; exit 0; }
exec 9>>"$LOCK"
flock -n 9 || { cat "$LOCK"; exit 0; }
echo "$HOLDER" > "$LOCK"
echo held
while [ -n "$(timeout 30 head -c 1)" ]; do :; done
"""

# User ids of the workers that stopped accepting, one a line; with $FILES: what they have open.
LEAVING = """
for process in /proc/[0-9]*; do
    case "$(tr '\\0' ' ' 2>/dev/null < $process/cmdline)" in
        "nginx: worker process is shutting down"*)
            if [ -n "$FILES" ]; then ls -l $process/fd; else stat -c %u $process; fi 2>&1 ;;
    esac
done
"""

# The sites and locks of apps.
USED = "ls $LOCKS $SITES/nonstop-*.conf 2>/dev/null"

# Held by whoever changes a site of this proxy, from writing it until the reload is proven.
PROXY_LOCK = "/dev/shm/nonstop.lock"


def lock_file(app: str) -> str:
    """Where an app's lock is; gone when the proxy restarts, as its holder's exec is."""
    return f"/dev/shm/nonstop-{app}.lock"
