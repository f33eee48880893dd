class Plain:
    @staticmethod
    def model_validate(raw):
        return raw


AssistantMessage = UserMessage = ToolMessage = ToolCall = Plain
