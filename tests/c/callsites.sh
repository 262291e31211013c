#!/bin/sh
# callsites.sh OBJECT...: writes callsites.c, the calls of libc in core_NAME.o, see callsites.h.
# A relocation of a call is four bytes before its return, on x86-64 as on aarch64.
set -eu

cat <<'END'
#include "callsites.h"

END
for object; do
    name=$(basename "$object" .o)
    echo "extern const char __start_$name[], __stop_$name[];"
done
echo
echo 'const struct core_text CORE_TEXTS[] = {'
for object; do
    name=$(basename "$object" .o)
    echo "    {\"${name#core_}\", __start_$name, __stop_$name},"
done
cat <<'END'
};
const size_t NCORE_TEXTS = sizeof CORE_TEXTS / sizeof CORE_TEXTS[0];

const struct call_site CALL_SITES[] = {
END
for object; do
    name=$(basename "$object" .o)
    objdump -r "$object" | awk -v section="$name" -v file="${name#core_}" '
        $1 == "RELOCATION" { here = $4; gsub(/\[|\]|:/, "", here); next }
        $2 !~ /PLT32|PC32|CALL26|JUMP26/ { next }
        {
            symbol = $3
            sub(/[-+]0x[0-9a-f]+$/, "", symbol)
            if (symbol ~ /^(\.|pz_|core_|__(asan|ubsan|tsan|sanitizer|lsan)_|_GLOBAL_|__stack_chk)/)
                next
            if (symbol == "__errno_location")
                next
            if (here == section)
                printf "    {\"%s\", \"%s\", 0x%s + 4},\n", file, symbol, $1
            else if (here ~ /^\.text/ && here !~ /^\.text\.(startup|exit)/) {
                printf "%s: a call of %s outside of %s\n", file, symbol, section > "/dev/stderr"
                exit 1
            }
        }'
done
cat <<'END'
};
const size_t NCALL_SITES = sizeof CALL_SITES / sizeof CALL_SITES[0];
END
