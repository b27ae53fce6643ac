"""What runs in the proxy's container: shell scripts, whose input is in environment variables."""

# What the running nginx says of $APP. 97: no client. `--silent`: nginx took the question and gave
# no answer.
SERVES = r"""
for try in 1 2 3; do
    if command -v curl >/dev/null; then
        said=$(curl -s --noproxy '*' --max-time 3 -H "Host: $APP.nonstop" "http://127.0.0.1:$PORT/")
    elif command -v wget >/dev/null; then
        said=$(timeout 4 wget -q -T 3 -O - --header "Host: $APP.nonstop" \
            "http://127.0.0.1:$PORT/" 2>&1)  # GNU's would try twenty times
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
"""

# Version, free disk in KiB, who holds $LOCK or left it without a word, what the running nginx says
# of $APP, and the files $SITE and $BEFORE. 98: no nginx. 96: the scripts here would not run; prints
# what they lack.
LOOK = rf"""
command -v nginx >/dev/null || exit 98
lacks=
for program in awk base64 df flock grep mktemp readlink sed stat timeout; do
    command -v $program >/dev/null || lacks="$lacks, $program"
done
[ -z "$lacks" ] || {{ printf %s "${{lacks#, }}"; exit 96; }}
nginx -v 2>&1
! command -v curl >/dev/null || echo --curl
echo --disk
df -Pk / | awk 'END {{ print $4 }}'
if [ -s "$LOCK" ]; then
    word=left
    flock -n -s 7 7< "$LOCK" || word=held
    sed "s/^/--$word /" "$LOCK"
fi
[ ! -e "$LOCK.left" ] || sed 's/^/--left /' "$LOCK.left"
{SERVES}
for file in "$SITE" "$BEFORE"; do
    printf '\n--file\n'
    [ ! -e "$file" ] || cat "$file"
done
"""

# Nginx's words about its configuration with $TEXT as $NAME in it; without $TEXT as it is. The copy
# that is tried is links to what is there. Written are the site and the files that include others,
# so that nginx comes by them to the copy's site; those beside the site lead nowhere: they are not.
# 93: there could be no copy; prints why. 95: nginx rejects it. 96: it does not read the site.
CHECK = r"""
[ -n "$TEXT" ] || { nginx -t ${CONF:+-c "$CONF"} || exit 95; exit; }
export LC_ALL=C
IFS='
'
built() { nginx -V 2>&1 | tr ' ' '\n' | sed -n "s/^--$1=//p"; }
conf=${CONF:-$(built conf-path)}
case "$conf" in /*) ;; *) conf=$(built prefix)/$conf ;; esac
base=${conf%/*}  # of relative names; of a file in / that is where nginx was built to have its own
[ -n "$base" ] || { base=$(built conf-path) && base=${base%/*}; }
directory() {
    [ -z "$1" ] || directory "${1%/*}"
    if [ -d "$copy$1" ] && [ ! -L "$copy$1" ]; then return; fi
    [ ! -L "$copy$1" ] || rm "$copy$1"
    mkdir "$copy$1"
    links "$copy$1/" "$1"/*
    links "$copy$1/" "$1"/.[!.]*
}
links() {
    into=$1
    shift  # what is left is a pattern where it matches nothing
    if [ -e "$1" ] || [ -L "$1" ]; then ln -s "$@" "$into"; fi
}
rewritten() {
    awk -v copy="$copy" -v base="$base/" '
        FNR == 1 { close(own); own = copy FILENAME }
        /include[ \t]*$/ { before = before $0 "\n"; next }
        {
            line = before $0
            before = ""
            while (match(line, /(^|[ \t\n;{}])include[ \t\n]+["\047]?[^ \t\n;"\047]+/)) {
                head = substr(line, 1, RSTART + RLENGTH - 1)
                line = substr(line, RSTART + RLENGTH)
                match(head, /[^ \t\n"\047]+$/)
                path = substr(head, RSTART)
                full = path ~ /^\//
                printf "%s%s", substr(head, 1, RSTART - 1), (full ? copy : "") path > own
                if (!told[path]++) print (full ? "" : base) path
            }
            print line > own
        }' "$@"
}
copied() {
    directory "$base"
    next=$conf
    while [ -n "$next" ]; do
        own=$(grep -lF include $next) || [ $? = 1 ]
        [ -n "$own" ] || break
        set -f
        rm -f $(printf "$copy%s\n" $own)
        patterns=$(rewritten $own)
        set -- $patterns
        set +f
        next=
        for pattern; do
            if [ "${pattern%/*}" = "$DIRECTORY" ]; then
                case "$NAME" in ${pattern##*/}) continue ;; esac
            fi
            for path in $pattern; do
                case "$path" in */../*) continue ;; esac
                if [ ! -e "$path" ] || [ -d "$path" ]; then continue; fi
                directory "${path%/*}"
                [ ! -L "$copy$path" ] || next="$next$IFS$path"
            done
        done
    done
    [ "$conf" = "$base/${conf##*/}" ] || mv -f "$copy$conf" "$copy$base"
    directory "$DIRECTORY"
    rm -f "$copy$DIRECTORY/$NAME"
    printf '%s\n# %s\n' "$TEXT" "$copy" | cat > "$copy$DIRECTORY/$NAME"
}
code=1
trap 'rm -rf "$made"' EXIT
for place in /dev/shm /tmp /var/tmp; do
    made=$(mktemp -d "$place/nonstop.XXXXXX") || continue
    copy=$made/root
    (set -e; copied)
    code=$?
    [ $code != 0 ] || break
    rm -rf "$made"
done
[ $code = 0 ] || exit 93
said=$({
    { nginx -T -c "$copy$base/${conf##*/}" 2>&3 || echo --rejected; } |
        grep -xF -e "# $copy" -e --rejected
} 3>&1)
printf '%s\n' "$said" | sed -e "s#$copy$base/${conf##*/}#$conf#g" -e "s#$copy##g"
case "$said" in
    *--rejected*) exit 95 ;;
    *"# $copy"*) ;;
    *) exit 96 ;;
esac
"""

# Whether whoever runs it can put a file into $DIRECTORY, where one is for a moment; prints why not.
WRITABLE = r"""
export LC_ALL=C
file=$DIRECTORY/.nonstop.$$
touch "$file" && rm -f "$file"
"""

# For the shell itself, not for a process of its own: takes the right to change a site of this
# proxy, which the kernel frees when the shell has ended, and with it what it runs. Prints `taken`
# or `busy`; else why it can't. A change of $HOLDER's own that a signal cut short makes way, and any
# whose time is over.
TAKE = r"""
read -r up _ < /proc/uptime
now=${up%.*}
if true >>"$PROXY_LOCK"; then
    exec 8>>"$PROXY_LOCK"
    if flock -n 8; then
        echo "$$ $((now + 15)) $HOLDER" > "$PROXY_LOCK" && echo taken
    else
        exec 8>&-
        read -r process end holder < "$PROXY_LOCK" || holder=
        if [ "$holder" = "$HOLDER" ] || [ "$now" -gt "${end:-$now}" ]; then
            [ "$(readlink "/proc/$process/fd/8")" != "$PROXY_LOCK" ] || kill "$process"
        fi
        echo busy
    fi
fi
"""

# For the shell that has that right: $TEXT becomes $SITE at once, or the site goes; what it was is
# $BEFORE. Prints what nginx would read. Nobody else has the right before this has ended, even if
# its shell was killed. 94: the lock is neither $HOLDER's nor, where that may be, free; prints
# whose.
WRITE = r"""(
set -e
read -r up _ < /proc/uptime
echo "$$ $((${up%.*} + 60)) $HOLDER" > "$PROXY_LOCK"
owner=free
flock -n "$LOCK" true || owner=$(cat "$LOCK")
[ "$owner" = "$HOLDER" ] || [ "$owner" = "$OR" ] || { echo "$owner"; exit 94; }
umask 022
trap 'rm -f "$NEW"' EXIT
if [ -e "$SITE" ] && [ "$(cat "$SITE"; echo .)" != "$TEXT." ]; then  # else it is a second try
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
)"""

# For the shell that has that right: gives it up.
LEAVE = """
: > "$PROXY_LOCK"
exec 8>&-
"""

# Holds the lock while something comes on standard input: prints `held` and its process, or who has
# it. That it is open would not be enough: it stays so when an engine with live-restore was
# restarted. Who ends well says `q`, who does not says `x` and stays named until somebody ends well,
# as who died does; both hear `freed`. A second try, as to look takes the lock for a moment.
LOCK = """
exec 9>>"$LOCK"
flock -n 9 || { sleep 0.1; flock -n 9; } || { cat "$LOCK"; exit 0; }
[ ! -s "$LOCK" ] || cat "$LOCK" >> "$LOCK.left"
echo "$HOLDER" > "$LOCK"
echo "held $$"
while said=$(timeout 30 head -c 1 9>&-) && [ -n "$said" ]; do
    case "$said" in
        q) rm -f "$LOCK.left"; : > "$LOCK" ;;
        x) ;;
        *) continue ;;
    esac
    exec 9>&-
    echo freed
    exit
done
"""

# Ends $PROCESS, which holds $HOLDER's lock and can no longer be told to; as $WORD says.
FREE = """
[ -s "$LOCK" ] && ! flock -n "$LOCK" true && [ "$(cat "$LOCK")" = "$HOLDER" ] || exit 0
[ "$WORD" != q ] || { rm -f "$LOCK.left"; : > "$LOCK"; }
kill "$PROCESS"
"""

# User ids of the workers that stopped accepting and the times they started (Unix, seconds), one a
# line; with $FILES: what they have open. In /proc times are hundredths of a second since the boot.
LEAVING = """
read -r up _ < /proc/uptime
boot=$(($(date +%s) - ${up%.*}))
for file in $(grep -ls '^nginx: worker process is shutting down' /proc/[0-9]*/cmdline); do
    process=${file%/cmdline}
    if [ -n "$FILES" ]; then ls -l $process/fd 2>&1; continue; fi
    user=$(stat -c %u $process) && set -- $(cat $process/stat) || continue
    echo "$user $((boot + ${22} / 100))"
done
"""

# Of nginx's processes with a title like $1: those of this container; with the host's processes in
# sight there may be others'.
_OWN = """
group() { said=; while read -r line; do said="$said $line"; done < $1/cgroup; }
group /proc/self 2>/dev/null
container=$said
own() {
    for file in $(grep -ls "^nginx: $1" /proc/[0-9]*/cmdline); do
        group "${file%/cmdline}" 2>/dev/null
        [ "$said" != "$container" ] || echo "$file"
    done
}
"""

# The container's own nginx reads its configuration; prints the time before, as nginx logs it.
# 1: no master took the signal.
HUP = f"""{_OWN}
date '+%Y/%m/%d %H:%M:%S'
code=1
for file in $(own 'master process'); do
    file=${{file#/proc/}}
    kill -HUP "${{file%/cmdline}}" && code=0
done
exit $code
"""

# Process ids, as the container sees them, of the workers that accept connections; then `--all`:
# that there is none must not be told by what broke off.
ACCEPTING = f"""{_OWN}
command -v grep >/dev/null || {{ echo "it has no grep"; exit 1; }}
set -- $(own 'worker process')
[ $# = 0 ] || grep -Ls 'is shutting down' "$@"
echo --all
"""

# The sites and locks of apps.
USED = "ls $LOCKS $SITES/nonstop-*.conf 2>/dev/null"

# Held by whoever changes a site of this proxy, from writing it until the reload is proven.
PROXY_LOCK = "/dev/shm/nonstop.lock"


def lock_file(app: str) -> str:
    """Where an app's lock is; gone when the proxy restarts, as its holder's exec is."""
    return f"/dev/shm/nonstop-{app}.lock"
