#include "gateway/cli/cli.h"

#include <signal.h>

/* The program's entry. Everything it can do is a command of gateway/cli; `serve` is the gateway
 * itself. */
int main(int argc, char **argv)
{
    /* A peer that closes its end is an error of that connection, not the end of the process. */
    (void)signal(SIGPIPE, SIG_IGN);
    return cli_main(argc, argv);
}
