# A device that has nothing but curl:
#
#   . docs/examples/device.sh
#   new_key                                   a random idempotency key
#   push TOKEN KEY ITEMS                      push items under an idempotency key
#   pull TOKEN [CURSOR]                       one page of the changes behind a cursor
#   cursor TOKEN [CURSOR]                     only the cursor of that page
#   upload TOKEN FILE TYPE DOMAIN RECORD_ID   send a file of a record; its address is printed first
#   resume TOKEN ADDRESS FILE                 send what of it has not arrived
#   download TOKEN FILE_ID [FIRST-LAST]       a file, or a range of its bytes

TIDEMARK=${TIDEMARK:-http://127.0.0.1:8080}

new_key() {
    od -An -N16 -tx1 /dev/urandom | tr -d ' \n'
}

push() {
    curl -sS "$TIDEMARK/v1/sync" -H "Authorization: Bearer $1" -H 'Content-Type: application/json' \
        --data-binary "{\"type\":\"sync\",\"key\":\"$2\",\"clock\":\"$(date -u +%FT%TZ)\",\"items\":$3}"
    echo
}

pull() {
    curl -sS "$TIDEMARK/v1/changes?cursor=${2-}" -H "Authorization: Bearer $1"
    echo
}

cursor() {
    pull "$@" | sed 's/.*"cursor":"\([^"]*\)".*/\1/'
}

upload() (
    metadata="filename $(coded "${2##*/}"),filetype $(coded "$3")"
    metadata="$metadata,domain $(coded "$4"),record_id $(coded "$5")"
    begun=$(tus "$1" POST /v1/uploads -H "Upload-Length: $(size "$2")" -H "Upload-Metadata: $metadata") ||
        { echo "$begun" >&2; exit 1; }
    address=$(echo "$begun" | header location)
    echo "$address"
    resume "$1" "$address" "$2"
)

resume() (
    told=$(tus "$1" HEAD "$2" --head -o /dev/null) || { echo "$told" >&2; exit 1; }
    offset=$(echo "$told" | header upload-offset)
    while [ "$offset" -lt "$(size "$3")" ]; do
        told=$(tail -c "+$((offset + 1))" "$3" | head -c 262144 | tus "$1" PATCH "$2" --data-binary @- \
            -H "Upload-Offset: $offset" -H 'Content-Type: application/offset+octet-stream') ||
            { echo "$told" >&2; exit 1; }
        offset=$(echo "$told" | header upload-offset)
    done
)

download() {
    curl -sS --fail-with-body "$TIDEMARK/v1/files/$2" -H "Authorization: Bearer $1" --range "${3:-0-}"
}

# What upload and resume are made of.

tus() (
    token=$1 method=$2 address=$3
    shift 3
    curl -sS --fail-with-body -D - -X "$method" "$TIDEMARK$address" -H "Authorization: Bearer $token" \
        -H 'Tus-Resumable: 1.0.0' "$@"
)

header() {
    tr -d '\r' | awk -v name="$1:" 'tolower($1) == name { print $2 }'
}

coded() {
    printf %s "$1" | base64 | tr -d '\n'
}

size() {
    wc -c <"$1" | tr -d ' '
}
