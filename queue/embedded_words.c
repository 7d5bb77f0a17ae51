#include "queue/embedded_words.h"

#include <stdio.h>

enum { WORDS_MAX = 200 };

static bool says(struct span output, const char *text)
{
    return span_search(output, span_of(text)) < output.len;
}

static bool disk_full(struct span output)
{
    return says(output, "No space left on device") ||
           says(output, "Short write while writing to the AOF file");
}

/* Redis repairs a cut end by itself; what it refuses is damage with good data behind it. */
static bool file_damaged(struct span output)
{
    return says(output, "reading the append only file") || says(output, "Wrong RDB checksum") ||
           says(output, "Internal error in RDB") ||
           says(output, "Wrong signature trying to load DB");
}

/* "809:M 28 Nov 2026 14:51:25.185 # Short write" without what stands before the words. */
static struct span without_stamp(struct span line)
{
    for (size_t i = 0; i + 2 < line.len && i < 60; i++) {
        if ((line.data[i] == '#' || line.data[i] == '*') && line.data[i + 1] == ' ') {
            return span_make(line.data + i + 2, line.len - i - 2);
        }
    }
    return line;
}

/* The last line that says something. */
static struct span last_words(struct span output)
{
    struct span words = {0};
    while (output.len > 0) {
        struct span line = span_trim(span_cut(&output, '\n'));
        if (line.len > 0) {
            words = line;
        }
    }
    words = without_stamp(words);
    words.len = words.len > WORDS_MAX ? WORDS_MAX : words.len;
    return words;
}

void embedded_explain(const struct embedded_end *end, char *out, size_t out_bytes)
{
    struct span words = last_words(end->output);
    const char *files = end->split_files ? "appendonlydir/appendonly.aof.manifest"
                                         : "appendonly.aof";
    if (disk_full(end->output)) {
        (void)snprintf(out, out_bytes,
                       "The disk is full: %s has %llu KiB left, and the embedded redis-server %s. "
                       "Nothing that was accepted is lost; free some space, the rest goes by "
                       "itself. Its last words: %.*s",
                       end->data_dir, (unsigned long long)end->free_bytes / 1024, end->how,
                       SPAN_FMT(words));
    } else if (file_damaged(end->output)) {
        (void)snprintf(out, out_bytes,
                       "The append-only file is damaged: copy %s, then run "
                       "\"redis-check-aof --fix %s\" in it, which cuts off all behind the damage. "
                       "The embedded redis-server %s. Its last words: %.*s",
                       end->data_dir, files, end->how, SPAN_FMT(words));
    } else {
        (void)snprintf(out, out_bytes, "The embedded redis-server %s. Its last words: %.*s",
                       end->how, SPAN_FMT(words));
    }
}
