/* Looking at one message over the HTTP API; `heave status`, `heave queue show ID` and `heave send
 * --wait` do it.
 *
 * Must not know: how the gateway was found. Thread: main. */
#ifndef HEAVE_GATEWAY_CLI_STATUS_COMMAND_H
#define HEAVE_GATEWAY_CLI_STATUS_COMMAND_H

#include "gateway/cli/client.h"

#include <jansson.h>

/* Fetches GET /v1/messages/{id}. Returns CLI_DONE and the object (json_decref it), or says what is
 * wrong on standard error and returns the exit code. */
int status_fetch(const struct cli_command *command, struct client *client, const char *id,
                 json_t **out_message);
/* Shows it: as a table of recipients, or as the API's own JSON. Returns the exit code. */
int status_print(const struct cli_command *command, const json_t *message, bool json);
/* How many recipients there are, and how many in a state ("queued", "delivered", ...). */
size_t status_recipients(const json_t *message);
size_t status_count(const json_t *message, const char *state);
/* Prints a JSON value and a line end to standard output. Returns the exit code. */
int status_print_json(const struct cli_command *command, const json_t *value);
/* Appends a JSON value. Errors: ERR_LIMIT (the buf). */
MUST_USE int status_dump_json(const json_t *value, size_t flags, struct buf *out);
/* Sends a GET and reads its JSON answer; the same returns as status_fetch. */
int status_get_json(const struct cli_command *command, struct client *client, const char *path,
                    json_t **out);
/* Member of an object as text: "" when it is none, "-" is up to the caller. */
const char *status_text(const json_t *object, const char *name);

#endif
