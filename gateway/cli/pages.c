#include "gateway/cli/pages.h"

#include <string.h>

enum {
    PAGE_MAX = 500,
    EMPTY_PAGES_MAX = 200, /* in a row, until the rest is left for --cursor */
};

bool pages_limit(const char *text, struct pages *pages)
{
    uint64_t number = 0;
    bool good = span_to_u64(span_of(text), PAGES_LIMIT_MAX, &number) == ERR_OK && number > 0;
    pages->limit = good ? (size_t)number : pages->limit;
    return good;
}

/* One page. The cursor is replaced. */
static int fetch_page(const struct cli_command *command, struct client *client, const char *path,
                      struct pages *pages)
{
    char limit[32];
    size_t left = pages->limit - json_array_size(pages->found);
    (void)snprintf(limit, sizeof limit, "%zu", left < PAGE_MAX ? left : (size_t)PAGE_MAX);
    struct buf whole;
    buf_init(&whole, 65536);
    int status = buf_append(&whole, span_of(path));
    status = status == ERR_OK ? client_query(&whole, "limit", limit) : status;
    if (status == ERR_OK && pages->cursor[0] != '\0') {
        status = client_query(&whole, "cursor", pages->cursor);
    }
    const char *text = status == ERR_OK ? buf_text(&whole) : NULL;
    json_t *answer = NULL;
    int code = text != NULL ? status_get_json(command, client, text, &answer)
                            : cli_fail(command, CLI_USAGE, "the filters are too long");
    buf_release(&whole);
    if (code == CLI_DONE) {
        (void)json_array_extend(pages->found, json_object_get(answer, "messages"));
        mem_free(pages->cursor);
        pages->cursor = mem_dup(span_of(status_text(answer, "next_cursor")));
    }
    json_decref(answer);
    return code;
}

int pages_fetch(const struct cli_command *command, struct client *client, const char *path,
                struct pages *pages)
{
    pages->found = json_array();
    pages->cursor = pages->cursor != NULL ? pages->cursor : mem_dup(SPAN_LIT(""));
    int code = CLI_DONE;
    size_t empty = 0;
    do {
        size_t before = json_array_size(pages->found);
        code = fetch_page(command, client, path, pages);
        empty = json_array_size(pages->found) == before ? empty + 1 : 0;
    } while (code == CLI_DONE && pages->cursor[0] != '\0' &&
             json_array_size(pages->found) < pages->limit && empty < EMPTY_PAGES_MAX);
    return code;
}

static long long recipients_in(const json_t *message, const char *state)
{
    const json_t *counts = json_object_get(message, "counts");
    long long sum = 0;
    const char *name = NULL;
    json_t *count = NULL;
    json_object_foreach((json_t *)counts, name, count)
    {
        sum += state == NULL || strcmp(state, name) == 0 ? json_integer_value(count) : 0;
    }
    return sum;
}

static void print_table(const json_t *messages)
{
    static const char *const heads[] = {"ID", "STATE",    "LANE", "CLIENT", "OPEN",
                                        "OF", "ACCEPTED", "FROM", "SUBJECT"};
    struct cli_table table;
    cli_table_init(&table, heads, sizeof heads / sizeof heads[0]);
    for (size_t i = 0; i < json_array_size(messages); i++) {
        const json_t *message = json_array_get(messages, i);
        cli_table_cell(&table, status_text(message, "id"));
        cli_table_cell(&table, status_text(message, "state"));
        cli_table_cell(&table, status_text(message, "lane"));
        cli_table_cell(&table, status_text(message, "client"));
        cli_table_number(&table, recipients_in(message, "queued"));
        cli_table_number(&table, recipients_in(message, NULL));
        cli_table_cell(&table, status_text(message, "accepted_at"));
        cli_table_cell(&table, status_text(message, "from"));
        cli_table_cell(&table, status_text(message, "subject"));
    }
    cli_table_print(&table, stdout);
    cli_table_release(&table);
}

int pages_print(const struct cli_command *command, const struct pages *pages, bool json)
{
    bool more = pages->cursor[0] != '\0';
    if (json) {
        json_t *answer = json_object();
        (void)json_object_set(answer, "messages", pages->found);
        (void)json_object_set_new(answer, "next_cursor",
                                  more ? json_string(pages->cursor) : json_null());
        int code = status_print_json(command, answer);
        json_decref(answer);
        return code;
    }
    print_table(pages->found);
    if (more) {
        (void)printf(
            "\nThere may be more: --limit shows up to %d, --cursor %s goes on from here.\n",
            PAGES_LIMIT_MAX, pages->cursor);
    }
    return cli_write(command, SPAN_LIT(""));
}

void pages_release(struct pages *pages)
{
    mem_free(pages->cursor);
    json_decref(pages->found);
    *pages = (struct pages){0};
}
