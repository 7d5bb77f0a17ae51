#include "gateway/cli/cli.h"

#include "gateway/base/codec.h"
#include "gateway/conf.h"
#include "gateway/serve.h"

#include <errno.h>
#include <string.h>

/* The table of commands, and what they share: usage, tables, files. */

static const struct cli_command serve_command;
static const struct cli_command version_command;
static const struct cli_command help_command;

static const struct cli_command *const commands[] = {
    &serve_command,      &cli_check_command,   &cli_config_command, &cli_send_command,
    &cli_status_command, &cli_explain_command, &cli_find_command,   &cli_queue_command,
    &cli_passwd_command, &version_command,     &help_command,
};
#define COMMAND_COUNT (sizeof commands / sizeof commands[0])

static const struct cli_command *find_command(const char *name)
{
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        if (strcmp(commands[i]->name, name) == 0) {
            return commands[i];
        }
    }
    return NULL;
}

/* ---- Shared by the commands ---- */

bool cli_common_take(struct cli_common *common, int option, const char *argument)
{
    switch (option) {
    case 'c':
        common->config = argument;
        return true;
    case CLI_OPTION_URL:
        common->url = argument;
        return true;
    case CLI_OPTION_CA_FILE:
        common->ca_file = argument;
        return true;
    case 'j':
        common->json = true;
        return true;
    default:
        return false;
    }
}

int cli_help(const struct cli_command *command)
{
    return cli_write(command, span_of(command->usage));
}

int cli_usage(const struct cli_command *command, const char *format, ...)
{
    (void)fprintf(stderr, "heave %s: ", command->name);
    va_list args;
    va_start(args, format);
    (void)vfprintf(stderr, format, args);
    va_end(args);
    (void)fputc('\n', stderr);
    return cli_try_help(command);
}

int cli_try_help(const struct cli_command *command)
{
    (void)fprintf(stderr, "Try: heave help %s\n", command->name);
    return CLI_USAGE;
}

int cli_fail(const struct cli_command *command, int code, const char *format, ...)
{
    char text[2000];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    cli_clean(text);
    (void)fprintf(stderr, "heave %s: %s\n", command->name, text);
    return code;
}

int cli_write(const struct cli_command *command, struct span bytes)
{
    size_t written = bytes.len > 0 ? fwrite(bytes.data, 1, bytes.len, stdout) : 0;
    if (written != bytes.len || fflush(stdout) != 0) {
        return cli_fail(command, CLI_REFUSED, "cannot write the output: %s", strerror(errno));
    }
    return CLI_DONE;
}

void cli_clean(char *text)
{
    for (char *at = text; *at != '\0'; at++) {
        unsigned char byte = (unsigned char)*at;
        if ((byte < ' ' && byte != '\n') || byte == 127) {
            *at = '?';
        }
    }
}

/* ---- Tables ---- */

void cli_table_init(struct cli_table *table, const char *const *heads, size_t columns)
{
    ASSERT(columns > 0 && columns <= CLI_COLUMNS_MAX);
    *table = (struct cli_table){.columns = columns};
    for (size_t i = 0; i < columns; i++) {
        cli_table_cell(table, heads[i]);
    }
}

void cli_table_cell(struct cli_table *table, const char *text)
{
    if (table->cell_count == table->cell_room) {
        size_t room = table->cell_room > 0 ? table->cell_room * 2 : 64;
        char **cells = mem_realloc_try(table->cells, room * sizeof *cells);
        if (cells == NULL) {
            return; /* a shorter table is better than none */
        }
        table->cells = cells;
        table->cell_room = room;
    }
    char *copy = mem_dup(span_of(text));
    cli_clean(copy);
    for (char *at = copy; *at != '\0'; at++) {
        *at = *at == '\n' ? ' ' : *at;
    }
    table->cells[table->cell_count++] = copy;
}

void cli_table_number(struct cli_table *table, long long number)
{
    char text[32];
    (void)snprintf(text, sizeof text, "%lld", number);
    cli_table_cell(table, text);
}

/* Characters, not bytes: continuation bytes of UTF-8 take no column. */
static int text_width(const char *text)
{
    int width = 0;
    for (; *text != '\0'; text++) {
        width += ((unsigned char)*text & 0xC0) != 0x80 ? 1 : 0;
    }
    return width;
}

void cli_table_print(const struct cli_table *table, FILE *out)
{
    int widths[CLI_COLUMNS_MAX] = {0};
    for (size_t i = 0; i < table->cell_count; i++) {
        int width = text_width(table->cells[i]);
        int *column = &widths[i % table->columns];
        *column = width > *column ? width : *column;
    }
    for (size_t i = 0; i < table->cell_count; i++) {
        size_t column = i % table->columns;
        bool is_last = column + 1 == table->columns;
        int pad = is_last ? 0 : widths[column] - text_width(table->cells[i]) + 2;
        (void)fprintf(out, "%s%*s%s", table->cells[i], pad, "", is_last ? "\n" : "");
    }
}

void cli_table_release(struct cli_table *table)
{
    for (size_t i = 0; i < table->cell_count; i++) {
        mem_free(table->cells[i]);
    }
    mem_free(table->cells);
    *table = (struct cli_table){0};
}

/* ---- Files ---- */

static int read_stream(FILE *file, struct buf *out)
{
    for (;;) {
        char *room = NULL;
        int status = buf_reserve(out, 65536, &room);
        if (status != ERR_OK) {
            return status;
        }
        size_t got = fread(room, 1, 65536, file);
        buf_commit(out, got);
        if (got == 0) {
            return ferror(file) != 0 ? ERR_IO : ERR_OK;
        }
    }
}

int cli_read_file(const char *path, struct buf *out, struct err *err)
{
    bool is_stdin = strcmp(path, "-") == 0;
    FILE *file = is_stdin ? stdin : fopen(path, "rbe");
    if (file == NULL) {
        return err_set(err, ERR_IO, "%s cannot be opened: %s", path, strerror(errno));
    }
    int status = read_stream(file, out);
    int saved = errno;
    if (!is_stdin) {
        (void)fclose(file); /* Only read from. */
    }
    if (status == ERR_IO) {
        return err_set(err, status, "%s cannot be read: %s", path, strerror(saved));
    }
    return status == ERR_OK ? ERR_OK : err_set(err, status, "%s is too large", path);
}

/* ---- serve, version, help ---- */

static int run_serve(int argc, char **argv)
{
    static const struct option options[] = {
        {"config", required_argument, NULL, 'c'}, {"help", no_argument, NULL, 'h'}, {0}};
    const char *file = NULL;
    for (int option = 0; (option = getopt_long(argc, argv, "c:h", options, NULL)) != -1;) {
        if (option == 'h') {
            return cli_help(&serve_command);
        }
        if (option != 'c') {
            return cli_try_help(&serve_command);
        }
        file = optarg;
    }
    if (optind < argc) {
        return cli_usage(&serve_command, "\"%s\" is not expected here", argv[optind]);
    }
    if (file == NULL) {
        return cli_usage(&serve_command,
                         "which configuration? Give -c FILE; gateway/quickstart of the source tree "
                         "writes one");
    }
    struct conf *conf = NULL;
    struct conf_report report;
    conf_report_init(&report);
    int status = conf_load(file, &conf, &report);
    if (status != ERR_OK) {
        struct buf text;
        buf_init(&text, (size_t)16 << 20);
        if (conf_report_print(&report, &text) == ERR_OK) {
            (void)fwrite(buf_span(&text).data, 1, buf_len(&text), stderr);
        }
        buf_release(&text);
    }
    conf_report_release(&report);
    if (status != ERR_OK) {
        return CLI_REFUSED;
    }
    int code = serve_run(conf, file);
    conf_unref(&conf);
    return code;
}

static const struct cli_command serve_command = {
    .name = "serve",
    .summary = "run the gateway",
    .usage =
        "Usage: heave serve -c FILE\n"
        "\n"
        "Runs the gateway until SIGTERM or SIGINT; a second one stops it at once. SIGHUP reads FILE again.\n"
        "\n"
        "  -c, --config FILE   the configuration\n"
        "\n"
        "Example: heave serve -c /etc/heave/heave.yaml\n",
    .run = run_serve,
};

static int run_version(int argc, char **argv)
{
    (void)argv;
    if (argc > 1) {
        return cli_help(&version_command);
    }
    return cli_write(&version_command, SPAN_LIT("heave " HEAVE_VERSION "\n"));
}

static const struct cli_command version_command = {
    .name = "version",
    .summary = "print the version",
    .usage = "Usage: heave version\n"
             "\n"
             "Prints name and version.\n"
             "\n"
             "Example: heave version\n",
    .run = run_version,
};

static int print_commands(FILE *out)
{
    (void)fprintf(
        out,
        "heave %s: bulk notification gateway for Microsoft 365\n\nUsage: heave COMMAND [OPTIONS]\n\n",
        HEAVE_VERSION);
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        (void)fprintf(out, "  %-9s %s\n", commands[i]->name, commands[i]->summary);
    }
    (void)fprintf(
        out,
        "\nMore: heave help COMMAND\n"
        "Exit codes: 0 done, 1 refused or invalid, 2 wrong usage, 3 not reachable, 75 try again later\n");
    return out == stdout ? CLI_DONE : CLI_USAGE;
}

static int run_help(int argc, char **argv)
{
    if (argc < 2 || argv[1][0] == '-') {
        return print_commands(stdout);
    }
    const struct cli_command *command = find_command(argv[1]);
    if (command == NULL) {
        (void)fprintf(stderr, "heave help: there is no command \"%s\"\nTry: heave help\n", argv[1]);
        return CLI_USAGE;
    }
    return cli_help(command);
}

static const struct cli_command help_command = {
    .name = "help",
    .summary = "explain a command",
    .usage = "Usage: heave help [COMMAND]\n"
             "\n"
             "Lists the commands, or explains one.\n"
             "\n"
             "Example: heave help send\n",
    .run = run_help,
};

int cli_main(int argc, char **argv)
{
    if (argc < 2) {
        return print_commands(stderr);
    }
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
        name = "help";
    } else if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) {
        name = "version";
    }
    const struct cli_command *command = find_command(name);
    if (command == NULL) {
        (void)fprintf(stderr, "heave: there is no command \"%s\"\nTry: heave help\n", name);
        return CLI_USAGE;
    }
    /* getopt_long() begins what it says about a wrong option with this name. */
    char title[64];
    (void)snprintf(title, sizeof title, "heave %s", command->name);
    argv[1] = title;
    return command->run(argc - 1, argv + 1);
}
