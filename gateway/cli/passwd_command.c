#include "gateway/cli/cli.h"

#include "gateway/policy.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

/* `heave passwd`: a hash for password_hash or api_key_hash. */

#define SECRET_MAX 512
#define HASH_MAX 512

/* Reads one line into `out`, without its line end. Errors: ERR_IO, ERR_LIMIT, ERR_INVAL (empty). */
static int read_line(int fd, struct buf *out)
{
    for (;;) {
        char byte = 0;
        ssize_t got = read(fd, &byte, 1);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return ERR_IO;
        }
        if (got == 0 || byte == '\n') {
            break;
        }
        int status = buf_append_byte(out, byte);
        if (status != ERR_OK) {
            return status;
        }
    }
    struct span text = buf_span(out);
    if (span_ends(text, SPAN_LIT("\r"))) {
        buf_truncate(out, text.len - 1);
    }
    return buf_len(out) > 0 ? ERR_OK : ERR_INVAL;
}

static int prompt(int terminal, const char *question, struct buf *out)
{
    struct termios before;
    if (tcgetattr(terminal, &before) != 0) {
        return ERR_IO;
    }
    struct termios silent = before;
    silent.c_lflag &= ~(tcflag_t)ECHO;
    if (tcsetattr(terminal, TCSAFLUSH, &silent) != 0) {
        return ERR_IO;
    }
    (void)dprintf(terminal, "%s", question);
    int status = read_line(terminal, out);
    (void)tcsetattr(terminal, TCSAFLUSH, &before); /* Nothing better can be done when this fails. */
    (void)dprintf(terminal, "\n");
    return status;
}

static int ask_twice(struct buf *out)
{
    int terminal = open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY);
    if (terminal < 0) {
        return cli_fail(&cli_passwd_command, CLI_USAGE,
                        "there is no terminal to ask on; use --stdin");
    }
    struct buf again;
    buf_init_secret(&again, SECRET_MAX);
    int code = CLI_DONE;
    int first = prompt(terminal, "Password: ", out);
    int second = first == ERR_OK ? prompt(terminal, "Again: ", &again) : ERR_OK;
    if (first != ERR_OK || second != ERR_OK) {
        code = cli_fail(&cli_passwd_command, CLI_REFUSED,
                        "the password cannot be used (empty, or above %d bytes)", SECRET_MAX);
    } else if (!span_eq(buf_span(out), buf_span(&again))) {
        code = cli_fail(&cli_passwd_command, CLI_REFUSED, "the two are different");
    }
    buf_release(&again);
    (void)close(terminal);
    return code;
}

static int print_hash(struct span secret)
{
    char hash[HASH_MAX];
    if (policy_hash(secret, hash, sizeof hash - 1) != ERR_OK) {
        return cli_fail(&cli_passwd_command, CLI_REFUSED, "no hash can be made on this system");
    }
    size_t len = strlen(hash);
    hash[len] = '\n';
    return cli_write(&cli_passwd_command, span_make(hash, len + 1));
}

static int run_passwd(int argc, char **argv)
{
    static const struct option options[] = {
        {"stdin", no_argument, NULL, CLI_OPTION_OWN}, {"help", no_argument, NULL, 'h'}, {0}};
    bool from_stdin = false;
    for (int option = 0; (option = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        if (option == 'h') {
            return cli_help(&cli_passwd_command);
        }
        if (option != CLI_OPTION_OWN) {
            return cli_try_help(&cli_passwd_command);
        }
        from_stdin = true;
    }
    if (optind < argc) {
        return cli_usage(&cli_passwd_command,
                         "the password is never an argument: others could see it");
    }
    struct buf secret;
    buf_init_secret(&secret, SECRET_MAX);
    int code = CLI_DONE;
    if (!from_stdin) {
        code = ask_twice(&secret);
    } else if (read_line(STDIN_FILENO, &secret) != ERR_OK) {
        code = cli_fail(&cli_passwd_command, CLI_REFUSED,
                        "standard input holds no password (or one above %d bytes)", SECRET_MAX);
    }
    if (code == CLI_DONE) {
        code = print_hash(buf_span(&secret));
    }
    buf_release(&secret);
    return code;
}

const struct cli_command cli_passwd_command = {
    .name = "passwd",
    .summary = "make a hash for a client's password or API key",
    .usage =
        "Usage: heave passwd [--stdin]\n"
        "\n"
        "Asks twice without echo and prints a yescrypt hash for password_hash or api_key_hash.\n"
        "\n"
        "      --stdin   read one line from standard input instead\n"
        "\n"
        "Example: openssl rand -hex 24 | tee erp.key | heave passwd --stdin\n",
    .run = run_passwd,
};
