#include "gateway/cli/status_command.h"

#include "gateway/base/codec.h"

#include <string.h>

const char *status_text(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text != NULL ? text : "";
}

int status_get_json(const struct cli_command *command, struct client *client, const char *path,
                    json_t **out)
{
    struct err err;
    struct client_reply reply;
    const struct client_call call = {.method = "GET", .path = path};
    int code = CLI_DONE;
    if (client_send(client, &call, &reply, &err) != ERR_OK) {
        code = cli_fail(command, CLI_UNREACHABLE, "%s", err.text);
    } else if (reply.status != 200) {
        code = client_refused(command, &reply);
        code = code == CLI_DONE ? CLI_REFUSED : code; /* a 2xx that is not the answer asked for */
    } else {
        struct span body = buf_span(&reply.body);
        *out = json_loadb(body.data != NULL ? body.data : "", body.len, 0, NULL);
        if (!json_is_object(*out)) {
            json_decref(*out);
            *out = NULL;
            code = cli_fail(command, CLI_UNREACHABLE, "the answer is not from a heave gateway");
        }
    }
    client_reply_release(&reply);
    return code;
}

int status_fetch(const struct cli_command *command, struct client *client, const char *id,
                 json_t **out_message)
{
    struct buf path;
    buf_init(&path, 4096);
    const char *text = NULL;
    if (buf_append(&path, SPAN_LIT("/v1/messages/")) == ERR_OK &&
        codec_percent_encode(span_of(id), &path) == ERR_OK) {
        text = buf_text(&path);
    }
    int code = text != NULL ? status_get_json(command, client, text, out_message)
                            : cli_fail(command, CLI_USAGE, "the id is too long");
    buf_release(&path);
    return code;
}

size_t status_recipients(const json_t *message)
{
    return json_array_size(json_object_get(message, "recipients"));
}

size_t status_count(const json_t *message, const char *state)
{
    const json_t *recipients = json_object_get(message, "recipients");
    size_t count = 0;
    for (size_t i = 0; i < json_array_size(recipients); i++) {
        count += strcmp(status_text(json_array_get(recipients, i), "state"), state) == 0 ? 1 : 0;
    }
    return count;
}

static int dump_some(const char *bytes, size_t len, void *ctx)
{
    return buf_append(ctx, span_make(bytes, len)) == ERR_OK ? 0 : -1;
}

int status_dump_json(const json_t *value, size_t flags, struct buf *out)
{
    return json_dump_callback(value, dump_some, out, flags) == 0 ? ERR_OK : ERR_LIMIT;
}

int status_print_json(const struct cli_command *command, const json_t *value)
{
    struct buf text;
    buf_init(&text, (size_t)256 << 20);
    int code = CLI_DONE;
    if (status_dump_json(value, JSON_INDENT(2), &text) != ERR_OK ||
        buf_append_byte(&text, '\n') != ERR_OK) {
        code = cli_fail(command, CLI_REFUSED, "the answer is too large to be shown");
    } else {
        code = cli_write(command, buf_span(&text));
    }
    buf_release(&text);
    return code;
}

static const char *or_dash(const char *text)
{
    return text[0] != '\0' ? text : "-";
}

static void print_head(const json_t *message)
{
    static const char *const names[] = {"id",      "state",      "client",      "lane",      "from",
                                        "subject", "message_id", "accepted_at", "expires_at"};
    const char *const heads[] = {"message", status_text(message, "id")};
    struct cli_table table;
    cli_table_init(&table, heads, 2);
    for (size_t i = 1; i < sizeof names / sizeof names[0]; i++) {
        const char *text = status_text(message, names[i]);
        if (text[0] != '\0') {
            cli_table_cell(&table, names[i]);
            cli_table_cell(&table, text);
        }
    }
    cli_table_print(&table, stdout);
    cli_table_release(&table);
}

static void print_recipients(const json_t *message)
{
    static const char *const heads[] = {"RECIPIENT", "STATE", "BACKEND", "ACCOUNT",
                                        "BATCH",     "TRIES", "WHEN",    "LAST REPLY"};
    struct cli_table table;
    cli_table_init(&table, heads, sizeof heads / sizeof heads[0]);
    const json_t *recipients = json_object_get(message, "recipients");
    for (size_t i = 0; i < json_array_size(recipients); i++) {
        const json_t *item = json_array_get(recipients, i);
        const char *next = status_text(item, "next_attempt_at");
        cli_table_cell(&table, or_dash(status_text(item, "address")));
        cli_table_cell(&table, or_dash(status_text(item, "state")));
        cli_table_cell(&table, or_dash(status_text(item, "backend")));
        cli_table_cell(&table, or_dash(status_text(item, "account")));
        cli_table_number(&table, json_integer_value(json_object_get(item, "batch")));
        cli_table_number(&table, json_integer_value(json_object_get(item, "attempts")));
        cli_table_cell(&table, or_dash(next[0] != '\0' ? next : status_text(item, "at")));
        const char *reason = status_text(item, "reason");
        cli_table_cell(&table,
                       or_dash(reason[0] != '\0' ? reason : status_text(item, "last_reply")));
    }
    cli_table_print(&table, stdout);
    cli_table_release(&table);
}

int status_print(const struct cli_command *command, const json_t *message, bool json)
{
    if (json) {
        return status_print_json(command, message);
    }
    print_head(message);
    (void)printf("\n");
    print_recipients(message);
    return cli_write(command, SPAN_LIT(""));
}

static int show_status(const struct cli_common *common, const char *id)
{
    struct err err;
    struct client *client = NULL;
    if (client_open(common, CLIENT_INSPECT, &client, &err) != ERR_OK) {
        return cli_usage(&cli_status_command, "%s", err.text);
    }
    json_t *message = NULL;
    int code = status_fetch(&cli_status_command, client, id, &message);
    if (code == CLI_DONE) {
        code = status_print(&cli_status_command, message, common->json);
    }
    json_decref(message);
    client_close(&client);
    return code;
}

static int run_status(int argc, char **argv)
{
    static const struct option options[] = {CLI_COMMON_OPTIONS, {0}};
    struct cli_common common = {0};
    for (int option = 0; (option = getopt_long(argc, argv, "c:jh", options, NULL)) != -1;) {
        if (option == 'h') {
            return cli_help(&cli_status_command);
        }
        if (!cli_common_take(&common, option, optarg)) {
            return cli_try_help(&cli_status_command);
        }
    }
    if (optind + 1 != argc) {
        return cli_usage(&cli_status_command, "give one message id");
    }
    return show_status(&common, argv[optind]);
}

const struct cli_command cli_status_command = {
    .name = "status",
    .summary = "show where each recipient of a message stands",
    .usage = "Usage: heave status ID [-c FILE | --url URL] [--json]\n"
             "\n"
             "Shows a message and the state of every recipient with the service's last words.\n"
             "\n"
             "  -c, --config FILE   find the gateway by its configuration\n"
             "      --url URL       where it is (also HEAVE_URL); the key is HEAVE_API_KEY\n"
             "      --ca-file FILE  certificates it is verified with\n"
             "      --json          the API's own object\n"
             "\n"
             "Example: heave status -c heave.yaml 01JDF3Q8ZK5W1T7R9N2B4C6D8E-0\n",
    .run = run_status,
};
