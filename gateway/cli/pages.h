/* Lists of messages over the HTTP API, page after page: `heave find` and `heave queue show`.
 *
 * One call of the API looks at a bounded number of messages, so that a page may be short or empty
 * and not the last; these go on until there are enough. Thread: main. */
#ifndef HEAVE_GATEWAY_CLI_PAGES_H
#define HEAVE_GATEWAY_CLI_PAGES_H

#include "gateway/cli/status_command.h"

#define PAGES_LIMIT_MAX 10000

struct pages {
    size_t limit;  /* most messages, 1 to PAGES_LIMIT_MAX */
    char *cursor;  /* where to begin ("" or NULL: the newest), then where to go on ("": the end) */
    json_t *found; /* array of messages */
};

/* Sets the limit from an option. False when it is not one. */
bool pages_limit(const char *text, struct pages *pages);
/* Gets `path` (with its query, without limit and cursor) until there are enough. Returns CLI_DONE,
 * or says what is wrong and returns the exit code. pages_release() in every case. */
int pages_fetch(const struct cli_command *command, struct client *client, const char *path,
                struct pages *pages);
/* Shows them: as a table, or as the API's objects {messages, next_cursor}. Returns the exit code.
 */
int pages_print(const struct cli_command *command, const struct pages *pages, bool json);
void pages_release(struct pages *pages);

#endif
