"""What runs in the proxy's container: shell scripts, whose input is in environment variables."""

# Version, what the running nginx says of $APP, and the site on disk. 97: no client, 98: no nginx.
LOOK = """
command -v nginx >/dev/null || exit 98
nginx -v 2>&1
echo --status
for try in 1 2 3; do
    if command -v curl >/dev/null; then
        curl -s --noproxy '*' --max-time 3 -H "Host: $APP.nonstop" "http://127.0.0.1:$PORT/"
    elif command -v wget >/dev/null; then
        wget -q -T 3 -O - --header "Host: $APP.nonstop" "http://127.0.0.1:$PORT/"
    else
        exit 97
    fi && break
    code=$?
    [ $code -ne 7 ] || break
done
[ ! -e "$SITE" ] || { echo --site; cat "$SITE"; }
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

# $TEXT becomes the site at once, or the site goes; prints what nginx would read. 94: the lock is
# neither $HOLDER's nor, where that may be, free; prints whose it is.
INSTALL = """
set -e
owner=free
flock -n "$LOCK" true || owner=$(cat "$LOCK")
[ "$owner" = "$HOLDER" ] || [ "$owner" = "$OR" ] || { echo "$owner"; exit 94; }
umask 022
if [ -n "$TEXT" ]; then
    printf '%s' "$TEXT" > "$SITE.new"
    mv -f "$SITE.new" "$SITE"
    cat "$SITE"
else
    rm -f "$SITE"
fi
"""

# Holds the lock while standard input is open: prints `held`, or who has it.
LOCK = """
command -v flock >/dev/null || { echo "no flock"; exit 0; }
exec 9>>"$LOCK"
flock -n 9 || { cat "$LOCK"; exit 0; }
echo "$HOLDER" > "$LOCK"
echo held
cat >/dev/null
"""


def lock_file(app: str) -> str:
    """Where an app's lock is; gone when the proxy restarts, as its holder's exec is."""
    return f"/dev/shm/nonstop-{app}.lock"
