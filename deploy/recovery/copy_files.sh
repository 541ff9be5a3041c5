#!/usr/bin/env bash
# Copies the files that devices uploaded, those of all cells, from one data.dir to another, under the same names:
#   bash deploy/recovery/copy_files.sh /var/lib/tidemark /var/backups/tidemark/files
# A file that is there is left alone. One gets its name when all of it is on the disk: after a kill run it again.
# It costs a look at each file, and a few processes for each new one.
set -euo pipefail
shopt -s nullglob
umask 077
mkdir -p "$2"
to=$(realpath "$2")
cd "$1"
for folder in uploads/files cells/*/uploads/files; do
    [ -d "$folder" ] || continue
    # Names with a dot are no files: parts of a copy that was killed, or what NFS keeps of a deleted file.
    find "$folder" -ignore_readdir_race -type f ! -name '*.*' -print0 | while IFS= read -r -d '' file; do
        [ ! -e "$to/$file" ] || continue
        mkdir -p "$to/${file%/*}"
        if cp -a "$file" "$to/$file.part"; then
            sync "$to/$file.part"
            mv "$to/$file.part" "$to/$file"
        elif [ -e "$file" ]; then
            exit 1
        fi # else it was deleted since it was listed
    done
done
