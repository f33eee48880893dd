class LLMAgent:
    def __init__(self, tools, domain_policy, llm):
        self.system_prompt = f"<policy>{domain_policy}</policy>"
