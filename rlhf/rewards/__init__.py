"""From responses to rewards: scores of reward models, programmatic rules, and how two scores become one."""
