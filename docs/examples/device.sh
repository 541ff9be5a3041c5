# A device that has nothing but curl:
#
#   . docs/examples/device.sh
#   push TOKEN KEY ITEMS     push items under an idempotency key
#   pull TOKEN [CURSOR]      one page of the changes behind a cursor
#   cursor TOKEN [CURSOR]    only the cursor of that page

TIDEMARK=${TIDEMARK:-http://127.0.0.1:8080}

push() {
    curl -sS "$TIDEMARK/v1/sync" -H "Authorization: Bearer $1" -H 'Content-Type: application/json' \
        --data-binary "{\"type\":\"sync\",\"key\":\"$2\",\"items\":$3}"
    echo
}

pull() {
    curl -sS "$TIDEMARK/v1/changes?cursor=${2-}" -H "Authorization: Bearer $1"
    echo
}

cursor() {
    pull "$@" | sed 's/.*"cursor":"\([^"]*\)".*/\1/'
}
