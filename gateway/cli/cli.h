/* The commands of the program: what each file of gateway/cli gives to the table in cli.c, and what
 * they share.
 *
 * A command gets its own arguments (argv[0] is its name) and returns the exit code. Results go to
 * standard output, what a person should know to standard error. `--json` output is stable, tables
 * may change.
 *
 * Must not know: loops, the queue; commands talk to a gateway through client.h. Thread: main,
 * blocking. */
#ifndef HEAVE_GATEWAY_CLI_CLI_H
#define HEAVE_GATEWAY_CLI_CLI_H

#include "gateway/base/buf.h"

#include <getopt.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

/* Exit codes (product.md 4). */
enum {
    CLI_DONE = 0,
    CLI_REFUSED = 1,     /* refused or invalid */
    CLI_USAGE = 2,       /* wrong usage */
    CLI_UNREACHABLE = 3, /* the gateway could not be reached */
    CLI_TRY_LATER = 75,  /* EX_TEMPFAIL */
};

struct cli_command {
    const char *name;
    const char *summary; /* one line for `heave help` */
    const char *usage;   /* everything for `heave help NAME`, with an example */
    int (*run)(int argc, char **argv);
};

/* Runs the command line of the program. */
int cli_main(int argc, char **argv);

/* The commands, by file. */
extern const struct cli_command cli_check_command;
extern const struct cli_command cli_config_command;
extern const struct cli_command cli_explain_command;
extern const struct cli_command cli_find_command;
extern const struct cli_command cli_passwd_command;
extern const struct cli_command cli_queue_command;
extern const struct cli_command cli_send_command;
extern const struct cli_command cli_status_command;

/* Options that several commands have. */
struct cli_common {
    const char *config;  /* -c FILE */
    const char *url;     /* --url URL, else HEAVE_URL */
    const char *ca_file; /* --ca-file FILE: certificates the gateway is verified with */
    bool json;
};
/* Rows for getopt_long; values of own options start at CLI_OPTION_OWN. */
#define CLI_OPTION_URL 256
#define CLI_OPTION_CA_FILE 257
#define CLI_OPTION_OWN 300
#define CLI_COMMON_OPTIONS                                                                      \
    {"config", required_argument, NULL, 'c'}, {"url", required_argument, NULL, CLI_OPTION_URL}, \
        {"ca-file", required_argument, NULL, CLI_OPTION_CA_FILE},                               \
        {"json", no_argument, NULL, 'j'},                                                       \
    {                                                                                           \
        "help", no_argument, NULL, 'h'                                                          \
    }
/* Takes a common option. False when it is none: then it is the command's own, or wrong. */
bool cli_common_take(struct cli_common *common, int option, const char *argument);
/* Prints the command's usage: asked for (CLI_DONE, on standard output), or after a mistake
 * (CLI_USAGE). */
int cli_help(const struct cli_command *command);
int cli_usage(const struct cli_command *command, const char *format, ...) PRINTF_LIKE(2, 3);
/* Where to read on, after getopt_long() has said what is wrong with an option; returns CLI_USAGE.
 */
int cli_try_help(const struct cli_command *command);
/* "heave NAME: sentence" on standard error; returns `code`. */
int cli_fail(const struct cli_command *command, int code, const char *format, ...)
    PRINTF_LIKE(3, 4);
/* Writes bytes to standard output and reports when that fails (a full disk, a closed pipe). Returns
 * the exit code. */
int cli_write(const struct cli_command *command, struct span bytes);

/* An aligned table. Cells are copied; control characters become '?'. */
#define CLI_COLUMNS_MAX 10
struct cli_table {
    size_t columns;
    char **cells;
    size_t cell_count;
    size_t cell_room;
};
void cli_table_init(struct cli_table *table, const char *const *heads, size_t columns);
void cli_table_cell(struct cli_table *table, const char *text);
void cli_table_number(struct cli_table *table, long long number);
void cli_table_print(const struct cli_table *table, FILE *out);
void cli_table_release(struct cli_table *table);
/* Text of a peer as a terminal may get it: control characters become '?'. In place. */
void cli_clean(char *text);

/* Reads all of a stream or file, at most `max`. Errors: ERR_IO, ERR_LIMIT, ERR_NOMEM; with a
 * sentence. */
MUST_USE int cli_read_file(const char *path, struct buf *out, struct err *err);

#endif
