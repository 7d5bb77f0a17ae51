/* `heave queue hold|release|retry|cancel|move|purge|replay`, called by queue_command.c. Thread:
 * main. */
#ifndef HEAVE_GATEWAY_CLI_QUEUE_WORK_COMMAND_H
#define HEAVE_GATEWAY_CLI_QUEUE_WORK_COMMAND_H

#include <stdbool.h>

/* Whether the arguments of `heave queue` say one of these verbs. */
bool queue_work_wanted(int argc, char **argv);
/* Runs it. Returns the exit code. */
int queue_work_run(int argc, char **argv);

#endif
